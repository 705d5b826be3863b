//! What of a VM's options is refused, to whom, before what, and under which name.

use crate::bed::{Answer, Node, Who};
use serde_json::Value;
use std::time::{Duration, Instant};
use stead_driver::guest::RunState;

const USERS: &str = "user:keeper@pve:1:0:::::\nacl:1:/vms:keeper@pve:PVEVMAdmin:\n\
    acl:1:/storage:keeper@pve:PVEDatastoreUser:\nacl:1:/vms:keeper@pve:Monitor:\nrole:Monitor:Sys.Modify:\n";
const ALL: [&str; 2] = ["root@pam", "keeper@pve"];
const CONFIG: &str = "/nodes/n1/qemu/100/config";

/// A node with VM 100, root and one who may do everything with VMs.
async fn start() -> (Node, Who, Who) {
    let node = Node::start(USERS, &ALL).await;
    let (root, keeper) = (node.sign_in("root@pam").await, node.sign_in("keeper@pve").await);
    let form = "vmid=100&memory=64&scsi0=local:1&net0=virtio";
    let upid = node.ask(&root, "POST", "/nodes/n1/qemu", form).await.data();
    assert_eq!(node.done(&upid).await, "OK");
    (node, root, keeper)
}

fn error(answer: &Answer, parameter: &str) -> String {
    assert_eq!(answer.line, "400 Parameter verification failed.", "{}", answer.body);
    answer.body["errors"][parameter].as_str().unwrap_or_else(|| panic!("{}", answer.body)).to_owned()
}

#[tokio::test]
async fn devices_of_the_host_are_roots_alone() {
    let (node, root, keeper) = start().await;
    for (form, words) in [
        ("serial0=/dev/ttyS0", "only root can set 'serial0' for real devices"),
        ("rng0=source%3D/dev/hwrng", "only root can set 'rng0' to the host's hardware generator"),
        ("scsi3=/dev/sdb", "only root can set 'scsi3' to a path or drive of the host"),
        ("cdrom=/dev/sr0,media%3Dcdrom", "only root can set 'cdrom' to a path or drive of the host"),
        ("ide2=cdrom", "only root can set 'ide2' to a path or drive of the host"),
        ("args=-S", "only root can set 'args' config"),
        ("hugepages=2", "only root can set 'hugepages' config"),
        ("keephugepages=1", "only root can set 'keephugepages' config"),
    ] {
        for (method, path, form) in [
            ("PUT", CONFIG, form.to_owned()),
            ("POST", CONFIG, form.to_owned()),
            ("POST", "/nodes/n1/qemu", format!("vmid=101&{form}")),
        ] {
            let refused = node.ask(&keeper, method, path, &form).await;
            assert!(
                refused.line.starts_with("403 ") && refused.line.contains(words),
                "{form}: {}",
                refused.line
            );
        }
    }
    assert_eq!(
        node.ask(&keeper, "PUT", CONFIG, "serial0=socket&rng0=/dev/urandom").await.data(),
        Value::Null
    );
    assert_eq!(node.ask(&root, "PUT", CONFIG, "serial1=/dev/ttyS0").await.data(), Value::Null);
}

#[tokio::test]
async fn what_is_refused_is_refused_before_a_task_begins() {
    let (node, root, keeper) = start().await;
    let post = async |form: &str| node.ask(&root, "POST", CONFIG, form).await;
    let stale = post("cores=2&digest=0000").await;
    assert!(stale.line.starts_with("500 detected modified configuration"), "{}", stale.line);
    assert_eq!(error(&post("boot=order%3Dscsi9").await, "boot"), "device 'scsi9' does not exist");
    assert!(error(&post("net0=virtio,bridge%3Dvmbr0,firewall%3D1").await, "net0").contains("no firewall"));
    let created = node.ask(&root, "POST", "/nodes/n1/qemu", "vmid=101&boot=order%3Dscsi9").await;
    assert_eq!(error(&created, "boot"), "device 'scsi9' does not exist");
    assert_eq!(post("lock=backup").await.line, "400 Parameter verification failed.");
    let missing = node.ask(&root, "POST", "/nodes/n1/qemu/102/config", "cores=2").await;
    assert!(missing.line.starts_with("500 ") && missing.line.contains("does not exist"), "{}", missing.line);
    let skip = node.ask(&keeper, "POST", CONFIG, "cores=2&skiplock=1").await;
    assert_eq!(error(&skip, "skiplock"), "Only root may use this option.");
    let done = post("cores=2").await.data();
    assert_eq!(node.done(&done).await, "OK");
}

#[tokio::test]
async fn errors_name_what_was_sent() {
    let (node, root, _) = start().await;
    let put = async |form: &str| node.ask(&root, "PUT", CONFIG, form).await;
    assert_eq!(error(&put("delete=nope").await, "delete"), "nope: there is no such option of a VM");
    assert_eq!(error(&put("revert=nope").await, "revert"), "nope: there is no such option of a VM");
    for form in ["scsi2=local:-1", "scsi2=local:1,format%3Dvmdk", "scsi2=local:99999999"] {
        error(&put(form).await, "scsi2");
    }
    let token = node.ask(&root, "POST", "/access/users/root@pam/token/a", "").await;
    assert!(error(&token, "tokenid").starts_with("invalid format - 'a' is no token's name: "));
    let resize = async |form: &str| node.ask(&root, "PUT", "/nodes/n1/qemu/100/resize", form).await;
    assert!(error(&resize("disk=net0&size=2G").await, "disk").contains("'net0' is not one of ide0 to ide3"));
    assert_eq!(error(&resize("disk=scsi7&size=2G").await, "disk"), "disk 'scsi7' does not exist");
    assert!(error(&resize("disk=scsi0&size=%2B900T").await, "size").contains("too large"));
    assert!(error(&resize("disk=scsi0&size=1M").await, "size").contains("shrinking"));
    let monitor = "command=pmemsave+0+4096+/etc/x";
    for who in ["root@pam", "keeper@pve"] {
        let who = node.sign_in(who).await;
        let refused = node.ask(&who, "POST", "/nodes/n1/qemu/100/monitor", monitor).await;
        assert!(error(&refused, "command").contains("'pmemsave' is refused"));
    }
}

#[tokio::test]
async fn a_request_gets_its_answer_within_the_patience_of_clients() {
    let (node, root, _) = start().await;
    let held = node.ops.guest_locks.lock("100".parse().unwrap()).await.unwrap();
    let begun = Instant::now();
    let busy = node.ask(&root, "PUT", CONFIG, "cores=2").await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(busy.line.starts_with("500 can't lock VM 100: "), "{}", busy.line);
    drop(held);

    let form = "storage=full&type=dir&path=/x&content=images&preallocation=full";
    node.ask(&root, "POST", "/storage", form).await.data();
    let big = node.ask(&root, "PUT", CONFIG, "scsi1=full:1").await;
    assert!(error(&big, "scsi1").contains("preallocation=full"));
    let disk = "filename=vm-100-disk-7.raw&size=1G&vmid=100";
    let big = node.ask(&root, "POST", "/nodes/n1/storage/full/content", disk).await;
    assert!(error(&big, "size").contains("preallocation=full"));
    let upid = node.ask(&root, "POST", CONFIG, "scsi1=full:1").await.data();
    assert_eq!(node.done(&upid).await, "OK", "a task has its time");
}

#[tokio::test]
async fn options_of_the_cluster_have_their_effect() {
    let (node, root, _) = start().await;
    let form = "mac_prefix=02:AA&next-id=lower%3D500,upper%3D502";
    assert_eq!(node.ask(&root, "PUT", "/cluster/options", form).await.data(), Value::Null);
    let next = async || node.ask(&root, "GET", "/cluster/nextid", "").await;
    for vmid in [500, 501] {
        assert_eq!(next().await.data(), vmid);
        let made = node.ask(&root, "POST", "/nodes/n1/qemu", &format!("vmid={vmid}&net0=virtio")).await;
        assert_eq!(node.done(&made.data()).await, "OK");
    }
    assert!(next().await.line.contains("no free VMID from 500 to 501"), "{}", next().await.line);
    let config = node.ask(&root, "GET", "/nodes/n1/qemu/500/config", "").await.data();
    assert!(config["net0"].as_str().unwrap().starts_with("virtio=02:AA:"), "{config}");
    let refused = node.ask(&root, "PUT", "/cluster/options", "registered-tags=a").await;
    assert_eq!(error(&refused, "registered-tags"), "not supported yet");
}

#[tokio::test]
async fn values_that_clients_send_as_a_matter_of_course_are_taken() {
    let (node, root, _) = start().await;
    let form = "tablet=1&hotplug=network,disk,usb&autostart=1&vmgenid=1&\
                smbios1=uuid%3D1d0f2f9e-31c6-4f5a-9a77-0e5b9a5f7a10";
    assert_eq!(node.ask(&root, "PUT", CONFIG, form).await.data(), Value::Null);
    let config = node.ask(&root, "GET", CONFIG, "").await.data();
    assert_eq!(config["vmgenid"].as_str().unwrap().len(), 36, "one was made: {config}");
    let later = node.ask(&root, "PUT", CONFIG, "hotplug=memory").await;
    assert!(error(&later, "hotplug").contains("needs numa=1"));
}

#[tokio::test]
async fn what_keeps_a_vm_from_moving_is_told_as_it_is() {
    let (node, root, _) = start().await;
    node.ask(&root, "POST", "/storage", "storage=own&type=dir&path=/x&content=images").await.data();
    for form in ["scsi1=own:2&serial1=/dev/ttyS0", "delete=scsi1"] {
        assert_eq!(node.ask(&root, "PUT", CONFIG, form).await.data(), Value::Null);
    }
    let told = node.ask(&root, "GET", "/nodes/n1/qemu/100/migrate", "").await.data();
    let [disk] = told["local_disks"].as_array().unwrap().as_slice() else { panic!("{told}") };
    assert_eq!((&disk["is_unused"], &disk["cdrom"]), (&1.into(), &0.into()), "{told}");
    assert_eq!(disk["size"], 2_u64 << 30, "{told}");
    assert_eq!(told["local_resources"], serde_json::json!(["serial1"]));
}

/// The firmware's variables are exactly as large as they come, whatever size is asked for.
#[tokio::test]
async fn a_disk_for_the_firmware_is_made_of_its_variables() {
    let (node, root, _) = start().await;
    let form = "bios=ovmf&efidisk0=local:1,efitype=4m,format=qcow2,pre-enrolled-keys=1";
    assert_eq!(node.ask(&root, "PUT", CONFIG, form).await.data(), Value::Null);
    let config = node.ask(&root, "GET", CONFIG, "").await.data();
    let disk = config["efidisk0"].as_str().unwrap();
    assert!(disk.starts_with("local:100/vm-100-disk-") && disk.ends_with("size=528K"), "{disk}");
    let grown = node.ask(&root, "PUT", "/nodes/n1/qemu/100/resize", "disk=efidisk0&size=%2B1M").await;
    assert!(error(&grown, "disk").contains("is not one of"), "{}", grown.line);
    for (value, why) in
        [("none", "only a CD drive"), ("local:1,efitype=8m", "efitype"), ("local:1,cache=none", "cache")]
    {
        let form = format!("efidisk0={}", value.replace('=', "%3D"));
        let refused = node.ask(&root, "PUT", CONFIG, &form).await;
        assert!(error(&refused, "efidisk0").contains(why), "{}", refused.line);
    }
    // Another program for it is another machine, which a running VM is not.
    let upid = node.ask(&root, "POST", "/nodes/n1/qemu/100/status/start", "").await.data();
    assert_eq!(node.done(&upid).await, "OK");
    let form = format!("efidisk0={}", disk.replace(",pre-enrolled-keys=1", "").replace('=', "%3D"));
    assert_eq!(node.ask(&root, "PUT", CONFIG, &form).await.data(), Value::Null);
    let current = node.ask(&root, "GET", &format!("{CONFIG}?current=1"), "").await.data();
    assert_eq!(current["efidisk0"], disk);
    let upid = node.ask(&root, "POST", "/nodes/n1/qemu/100/status/stop", "").await.data();
    assert_eq!(node.done(&upid).await, "OK");
    assert_eq!(node.ask(&root, "PUT", CONFIG, "revert=efidisk0").await.data(), Value::Null);
    assert_eq!(node.ask(&root, "PUT", CONFIG, "delete=efidisk0").await.data(), Value::Null);
    let config = node.ask(&root, "GET", CONFIG, "").await.data();
    assert!(config["efidisk0"].is_null() && config["unused0"].is_string(), "{config}");
}

/// What a TPM keeps has one size and one format, and is a volume like any other.
#[tokio::test]
async fn a_tpm_keeps_its_state_on_a_volume() {
    let (node, root, _) = start().await;
    for (value, why) in [
        ("none", "only a CD drive"),
        ("local:1,version=v3.0", "version"),
        ("local:1,format=qcow2", "not supported yet"),
        ("local:0,import-from=local:100/vm-100-disk-0.raw", "import-from"),
        ("/dev/sdb", "kept on a volume"),
    ] {
        let form = format!("tpmstate0={}", value.replace('=', "%3D"));
        let refused = node.ask(&root, "PUT", CONFIG, &form).await;
        assert!(error(&refused, "tpmstate0").contains(why), "{}", refused.line);
    }
    let form = "tpmstate0=local:1,version%3Dv2.0";
    assert_eq!(node.ask(&root, "PUT", CONFIG, form).await.data(), Value::Null);
    let config = node.ask(&root, "GET", CONFIG, "").await.data();
    let state = config["tpmstate0"].as_str().unwrap();
    assert!(
        state.starts_with("local:100/vm-100-disk-") && state.ends_with(".raw,version=v2.0,size=4M"),
        "{state}"
    );
    let grown = node.ask(&root, "PUT", "/nodes/n1/qemu/100/resize", "disk=tpmstate0&size=%2B1M").await;
    assert!(error(&grown, "disk").contains("is not one of"), "{}", grown.line);
    // The first disk of the VM is a file that no TPM could read.
    assert_eq!(node.ask(&root, "PUT", CONFIG, "sata3=local:1,format%3Dqcow2").await.data(), Value::Null);
    assert_eq!(node.ask(&root, "PUT", CONFIG, "delete=sata3,tpmstate0").await.data(), Value::Null);
    let config = node.ask(&root, "GET", CONFIG, "").await.data();
    let unused = ["unused0", "unused1"].map(|key| config[key].as_str().unwrap().to_owned());
    let (raw, other): (Vec<&String>, Vec<&String>) = unused.iter().partition(|v| v.ends_with(".raw"));
    let refused = node.ask(&root, "PUT", CONFIG, &format!("tpmstate0={}", other[0])).await;
    assert!(error(&refused, "tpmstate0").contains("in the format qcow2"), "{}", refused.line);
    assert_eq!(node.ask(&root, "PUT", CONFIG, &format!("tpmstate0={}", raw[0])).await.data(), Value::Null);

    // While it runs it may be writing at any moment; it is another TPM with the next start alone.
    let upid = node.ask(&root, "POST", "/nodes/n1/qemu/100/status/start", "").await.data();
    assert_eq!(node.done(&upid).await, "OK");
    let refused = node.ask(&root, "POST", "/nodes/n1/qemu/100/snapshot", "snapname=a").await;
    assert!(
        refused.line.contains("'tpmstate0'") && refused.line.contains("shut the VM down first"),
        "{}",
        refused.line
    );
    assert_eq!(node.ask(&root, "PUT", CONFIG, "delete=tpmstate0").await.data(), Value::Null);
    let current = node.ask(&root, "GET", &format!("{CONFIG}?current=1"), "").await.data();
    assert!(current["tpmstate0"].is_string(), "{current}");
}

/// What a running VM takes without a device that comes or goes.
#[tokio::test]
async fn limits_links_and_the_balloon_change_at_once() {
    let (node, root, _) = start().await;
    let upid = node.ask(&root, "POST", "/nodes/n1/qemu/100/status/start", "").await.data();
    assert_eq!(node.done(&upid).await, "OK");
    let get =
        async |path: &str| node.ask(&root, "GET", &format!("/nodes/n1/qemu/100/{path}"), "").await.data();
    let set = async |key: &str, value: &str| {
        let form = format!("{key}={}", value.replace('=', "%3D"));
        node.ask(&root, "PUT", CONFIG, &form).await.data()
    };
    let config = get("config").await;
    let (disk, net) = (config["scsi0"].as_str().unwrap(), config["net0"].as_str().unwrap());
    let now = [
        ("scsi0", format!("{disk},iops_wr=100,mbps_rd=1.5,backup=0")),
        ("scsi0", disk.to_owned()),
        ("net0", format!("{net},link_down=1")),
        ("net0", net.to_owned()),
        ("balloon", "32".to_owned()),
    ];
    for (key, value) in &now {
        set(key, value).await;
        let shown = get("config").await[key].to_string();
        assert_eq!(shown.trim_matches('"'), value.as_str());
        let pending = get("pending").await;
        let open = |row: &&Value| row.get("pending").is_some() || row.get("delete").is_some();
        assert_eq!(pending.as_array().unwrap().iter().find(open), None, "{key}={value}");
    }
    for (key, value) in [("scsi0", format!("{disk},cache=unsafe,iops=5")), ("balloon", "0".into())] {
        let before = get("config").await[key].clone();
        set(key, &value).await;
        let pending = get("pending").await;
        let row = pending.as_array().unwrap().iter().find(|row| row["key"] == key).unwrap();
        let pending = row["pending"].to_string();
        assert_eq!((&row["value"], pending.trim_matches('"')), (&before, value.as_str()));
    }
    assert_eq!(node.ask(&root, "PUT", CONFIG, "revert=scsi0,balloon").await.data(), Value::Null);

    // What a process does not take is told, and there from its next start on.
    node.below.machines.set_state("n1", "100".parse().unwrap(), RunState::Unresponsive);
    let refused = node.ask(&root, "PUT", CONFIG, "balloon=48").await;
    assert!(refused.line.contains("it has it from its next start on"), "{}", refused.line);
    assert_eq!(get("config").await["balloon"], 48);
}

#[tokio::test]
async fn a_protected_vm_keeps_its_disks_and_is_not_removed() {
    let (node, root, _) = start().await;
    assert_eq!(node.ask(&root, "PUT", CONFIG, "protection=1").await.data(), Value::Null);
    let refused = node.ask(&root, "PUT", CONFIG, "delete=scsi0").await;
    assert!(
        refused.line.contains("can't remove disk 'scsi0' of VM 100: the VM is protected"),
        "{}",
        refused.line
    );
    let refused = node.ask(&root, "DELETE", "/nodes/n1/qemu/100", "").await;
    assert!(refused.line.contains("protect"), "{}", refused.line);
    assert_eq!(node.ask(&root, "PUT", CONFIG, "delete=protection").await.data(), Value::Null);
    assert_eq!(node.ask(&root, "PUT", CONFIG, "delete=scsi0").await.data(), Value::Null);
    let config = node.ask(&root, "GET", CONFIG, "").await.data();
    assert!(config["scsi0"].is_null() && config["unused0"].is_string(), "{config}");
    let upid = node.ask(&root, "DELETE", "/nodes/n1/qemu/100", "").await.data();
    assert_eq!(node.done(&upid).await, "OK");
}

#[tokio::test]
async fn keys_are_pressed_by_name() {
    let (node, root, keeper) = start().await;
    let press = async |who: &Who, form: &str| node.ask(who, "PUT", "/nodes/n1/qemu/100/sendkey", form).await;
    assert!(press(&root, "key=ctrl-alt-delete").await.line.starts_with("500 "), "it does not run");
    let upid = node.ask(&root, "POST", "/nodes/n1/qemu/100/status/start", "").await.data();
    assert_eq!(node.done(&upid).await, "OK");
    assert_eq!(press(&keeper, "key=ctrl-alt-delete").await.data(), Value::Null);
    assert!(error(&press(&root, "key=X").await, "key").contains("invalid parameter"));
    for wrong in ["key=a%20b", "key=a--b", "key=a%0Aquit"] {
        assert!(error(&press(&root, wrong).await, "key").contains("names of keys"), "{wrong}");
    }
    assert_eq!(
        error(&press(&keeper, "key=a&skiplock=1").await, "skiplock"),
        "Only root may use this option."
    );
}

/// Options that change little: taken where they can be, and refused with the reason where they can't.
#[tokio::test]
async fn the_smallest_options_are_taken_or_say_why_not() {
    let (node, root, _) = start().await;
    let form = "arch=x86_64&autostart=1&migrate_speed=20&smp=2";
    assert_eq!(node.ask(&root, "PUT", CONFIG, form).await.data(), Value::Null);
    let config = node.ask(&root, "GET", CONFIG, "").await.data();
    assert_eq!((&config["migrate_speed"], &config["smp"]), (&20.into(), &2.into()), "{config}");
    let stored = node.ops.guest_at("100".parse().unwrap()).unwrap().config.value;
    let stored = stead_model::VmConfig::parse(&stored).unwrap().current;
    assert_eq!((stored.sockets(), stored.migrate_speed()), (Ok(2), Ok(Some(20 << 20))));
    for (form, why) in [
        ("arch=aarch64", "VMs here are x86_64"),
        ("spice_enhancements=videostreaming%3Dall", "has no SPICE"),
        ("usb0=spice", "does not have"),
        ("cpu=max,reported-model%3DHaswell", "custom-cpu-models"),
    ] {
        let name = form.split('=').next().unwrap();
        let refused = error(&node.ask(&root, "PUT", CONFIG, form).await, name);
        assert!(refused.contains(why), "{form}: {refused}");
    }
}
