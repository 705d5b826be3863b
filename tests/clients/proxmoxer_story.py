"""A VM's life, driven by an unmodified proxmoxer. The VM 100 is there, on n1, and boots by itself.

Every check says what it expected; the first that fails ends the story.
"""

import io
import os

from proxmoxer import ProxmoxAPI, ResourceException
from proxmoxer.tools import Tasks

HOST, PORT = os.environ["STEAD_HOST"], int(os.environ["STEAD_PORT"])
USER, PASSWORD = os.environ["STEAD_USER"], os.environ["STEAD_PASSWORD"]


def check(holds, what):
    if not holds:
        raise SystemExit(f"FAILED: {what}")
    print(f"ok: {what}", flush=True)


def refused(call, what, *words):
    try:
        call()
    except ResourceException as e:
        check(all(w in str(e).lower() for w in words), f"{what}: refused with '{e}'")
    else:
        raise SystemExit(f"FAILED: {what}: not refused")


def done(api, upid, what):
    status = Tasks.blocking_status(api, upid, timeout=60, polling_interval=0.1)
    check(status is not None and status["exitstatus"] == "OK", f"{what}: {status and status['exitstatus']}")


def main():
    api = ProxmoxAPI(HOST, port=PORT, user=USER, password=PASSWORD, verify_ssl=False)
    check(api.version.get()["version"].startswith("9."), "signed in, /version is a 9.x")
    nodes = {n["node"]: n for n in api.nodes.get()}
    check(set(nodes) == {"n1", "n2"} and all(n["status"] == "online" for n in nodes.values()), "two nodes online")

    n1, n2 = api.nodes("n1"), api.nodes("n2")
    vm = n1.qemu(100)
    vm.config.put(description="by proxmoxer", tags="a;b")
    config = vm.config.get()
    check(config["description"].strip() == "by proxmoxer" and config["tags"] == "a;b", "the configuration is changed")
    refused(lambda: vm.config.put(digest="0" * 40, name="x"), "a change of another version of the configuration", "500")
    refused(lambda: vm.config.put(memory="much"), "a wrong memory", "400")
    refused(lambda: n1.qemu(999).config.get(), "a VM that is not there", "does not exist")
    refused(lambda: api.cluster("no")("such").get(), "a path that is not there", "501")
    check(int(api.cluster.nextid.get()) == 101, "the next free VMID")

    done(api, vm.status.start.post(), "start")
    check(vm.status.current.get()["status"] == "running", "it runs")
    row = [r for r in api.cluster.resources.get(type="vm") if r["vmid"] == 100]
    check(row and row[0]["status"] == "running" and row[0]["node"] == "n1", "the cluster's resources say so too")

    token = api.access.users(USER).token("ci").post(privsep=0)
    by_token = ProxmoxAPI(HOST, port=PORT, user=USER, token_name="ci", token_value=token["value"], verify_ssl=False)
    check(by_token.nodes("n2").status.get()["uptime"] >= 0, "a token signs in, and the request is forwarded to n2")

    # Sent to n1 about a guest that is on n1, watched there, seen on n2.
    done(by_token, by_token.nodes("n1").qemu(100).migrate.post(target="n2", online=1), "live migration to n2")
    check(n2.qemu(100).status.current.get()["status"] == "running", "it runs on n2")
    log = [line["t"] for line in n1.tasks.get(typefilter="qmigrate")[:1] for line in n1.tasks(line["upid"]).log.get()]
    check(len(log) > 0, f"the migration's log has {len(log)} lines")

    api.access.users(USER).token("ci").delete()
    refused(lambda: by_token.nodes.get(), "a token that was deleted", "401")

    iso = io.BytesIO(os.urandom(3 << 20))
    iso.name = "a b.iso"
    done(api, n2.storage("shared").upload.post(content="iso", filename=iso), "upload to n2 by n1")
    images = {c["volid"]: c for c in n1.storage("shared").content.get(content="iso")}
    check(images.get("shared:iso/a b.iso", {}).get("size") == 3 << 20, "the image is there, with a blank in its name")
    done(api, n1.storage("shared").content("shared:iso/a%20b.iso").delete(), "the image is deleted")

    done(api, n2.qemu(100).status.stop.post(), "stop")
    done(api, n2.qemu(100).delete(purge=1), "delete")
    refused(lambda: n2.qemu(100).status.current.get(), "the deleted VM", "does not exist")
    print("proxmoxer: the story is told")


if __name__ == "__main__":
    main()
