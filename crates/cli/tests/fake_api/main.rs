//! The binary against a small server that plays a node's API: what is called, what is shown, how it ends. The stage, and scenes of
//! one node; those of a cluster are in [`cluster`].

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::ext::ReasonPhrase;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::convert::Infallible;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tokio::net::UnixListener;
use tokio::process::Command;

mod clones;
mod cluster;
mod conf;

const UPID: &str = "UPID:pve1:0000A1B2:00C3D4E5:6564F3A0:qmstart:100:root@pam:";

/// What the server has for `METHOD /path` (without the prefix): answers in turn, the last one for good.
type Script = HashMap<String, Vec<(u16, Value)>>;

/// A node that answers as scripted and notes what it was asked.
struct Fake {
    dir: tempfile::TempDir,
    calls: Arc<Mutex<Vec<String>>>,
}

/// How a command ended.
#[derive(Debug)]
struct Ended {
    code: i32,
    out: String,
    err: String,
}

impl Fake {
    async fn new(script: &[(&str, Value)]) -> Self {
        let mut all: Script = base();
        for (call, data) in script {
            all.entry((*call).to_owned()).or_default().push((200, data.clone()));
        }
        Self::serve(all).await
    }

    async fn refusing(call: &str, status: u16, body: Value) -> Self {
        let mut all = base();
        all.insert(call.to_owned(), vec![(status, body)]);
        Self::serve(all).await
    }

    async fn serve(script: Script) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("run")).unwrap();
        let listener = UnixListener::bind(dir.path().join("run/api.sock")).unwrap();
        let calls: Arc<Mutex<Vec<String>>> = Arc::default();
        let (script, noted) = (Arc::new(Mutex::new(script)), calls.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, noted) = (script.clone(), noted.clone());
                let service = service_fn(move |request| answer(request, script.clone(), noted.clone()));
                let server = hyper::server::conn::http1::Builder::new();
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { dir, calls }
    }

    /// Runs `words`, the first of which is the name that the program is called by.
    async fn run(&self, words: &[&str]) -> Ended {
        let link = self.dir.path().join(words[0]);
        if !link.exists() {
            symlink(env!("CARGO_BIN_EXE_stead"), &link).unwrap();
        }
        let mut command = Command::new(&link);
        command.args(&words[1..]).kill_on_drop(true).stdin(std::process::Stdio::null());
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("STEAD_")) {
            command.env_remove(name);
        }
        command.env("STEAD_DIR", self.dir.path());
        let limit = std::time::Duration::from_secs(60);
        let output = tokio::time::timeout(limit, command.output()).await.unwrap().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Ended { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// The calls that change something.
    fn changes(&self) -> Vec<String> {
        self.calls.lock().unwrap().iter().filter(|c| !c.starts_with("GET ")).cloned().collect()
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// What every node has.
fn base() -> Script {
    let status = json!([
        {"type": "cluster", "name": "prod", "nodes": 2, "quorate": 1, "version": 3},
        {"type": "node", "name": "pve1", "nodeid": 1, "ip": "192.0.2.1", "online": 1, "local": 1},
        {"type": "node", "name": "pve2", "nodeid": 2, "ip": "192.0.2.2", "online": 1, "local": 0},
    ]);
    let resources = json!([
        {"type": "qemu", "id": "qemu/101", "vmid": 101, "name": "db", "node": "pve2", "status": "stopped", "maxmem": 1073741824},
        {"type": "qemu", "id": "qemu/100", "vmid": 100, "name": "web", "node": "pve1", "status": "running", "maxmem": 536870912, "uptime": 61},
    ]);
    let answers = [
        ("GET /cluster/status", status),
        ("GET /cluster/resources", resources),
        ("GET /cluster/nextid", json!("102")),
    ];
    answers.into_iter().map(|(call, data)| (call.to_owned(), vec![(200, data)])).collect()
}

async fn answer(
    request: Request<Incoming>,
    script: Arc<Mutex<Script>>,
    noted: Arc<Mutex<Vec<String>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = String::from_utf8_lossy(&body.collect().await.unwrap().to_bytes()).into_owned();
    let path = head.uri.path().strip_prefix("/api2/json").unwrap_or(head.uri.path());
    let call = format!("{} {path}", head.method);
    let with = head.uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    noted.lock().unwrap().push(format!("{call}{with} {body}").trim_end().to_owned());
    let mut script = script.lock().unwrap();
    let (status, data) = match script.get_mut(&call) {
        Some(answers) if answers.len() > 1 => answers.remove(0),
        Some(answers) => answers[0].clone(),
        None => (501, json!({ "message": format!("Method '{call}' not implemented") })),
    };
    let body = match (status, path.ends_with("openapi.json")) {
        (200, false) => json!({ "data": data }),
        _ => data,
    };
    let mut response = Response::new(Full::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    if let Some(message) = body["message"].as_str().filter(|_| status != 200) {
        response.extensions_mut().insert(ReasonPhrase::try_from(message.to_owned()).unwrap());
    }
    Ok(response)
}

#[tokio::test]
async fn lists_are_tables_for_people_and_json_for_programs() {
    let fake = Fake::new(&[]).await;
    let people = fake.run(&["stead", "vm", "list"]).await;
    assert_eq!(
        people.out,
        "VMID  NAME  STATUS   NODE   MEMORY  UPTIME\n \
         100  web   running  pve1  512 MiB  1m 1s\n \
         101  db    stopped  pve2    1 GiB  -\n"
    );
    let programs = fake.run(&["stead", "-o", "json", "vm", "list", "--node", "pve2"]).await;
    let value: Value = serde_json::from_str(&programs.out).unwrap();
    assert_eq!(value[0]["name"], "db");
    assert_eq!((value.as_array().unwrap().len(), programs.code), (1, 0));
}

/// A task that logs two lines and ends as said.
fn task(call: &str, exit: &str) -> Vec<(String, Value)> {
    let escaped = UPID.replace(':', "%3A").replace('@', "%40");
    let base = format!("GET /nodes/pve1/tasks/{escaped}");
    vec![
        (call.to_owned(), json!(UPID)),
        (format!("{base}/status"), json!({"status": "running"})),
        (format!("{base}/status"), json!({"status": "stopped", "exitstatus": exit})),
        (format!("{base}/log"), json!([{"n": 1, "t": "starting"}])),
        (format!("{base}/log"), json!([{"n": 1, "t": "started"}])),
        (format!("{base}/log"), json!([])),
    ]
}

async fn with_task(call: &str, exit: &str) -> Fake {
    let script = task(call, exit);
    Fake::new(&script.iter().map(|(c, v)| (c.as_str(), v.clone())).collect::<Vec<_>>()).await
}

#[tokio::test]
async fn a_task_is_followed_and_its_end_is_the_commands_end() {
    let fake = with_task("POST /nodes/pve1/qemu/100/status/start", "OK").await;
    let ended = fake.run(&["stead", "vm", "start", "100"]).await;
    assert_eq!((ended.code, ended.out.as_str()), (0, "starting\nstarted\n"), "{ended:?}");
    let log: Vec<String> = fake.calls().into_iter().filter(|c| c.contains("/log?")).collect();
    assert!(log[0].ends_with("start=0&limit=500") && log[1].ends_with("start=1&limit=500"), "{log:?}");

    let fake = with_task("POST /nodes/pve1/qemu/100/status/start", "QEMU exited").await;
    let ended = fake.run(&["qm", "start", "100"]).await;
    assert_eq!((ended.code, ended.err.as_str()), (1, "error: task failed: QEMU exited\n"));

    let fake = with_task("POST /nodes/pve1/qemu/100/status/start", "OK").await;
    let ended = fake.run(&["stead", "vm", "start", "100", "--no-wait"]).await;
    assert_eq!((ended.code, ended.out.trim()), (0, UPID));
    let ended = fake.run(&["stead", "vm", "start", "100", "--output", "json"]).await;
    let result: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(result, json!({ "upid": UPID, "exitstatus": "OK" }));
    assert_eq!(ended.err, "starting\nstarted\n");
}

#[tokio::test]
async fn a_node_that_is_away_is_waited_for_aloud_and_one_that_refuses_is_not() {
    let start = "POST /nodes/pve1/qemu/100/status/start";
    let answers = |first: (u16, Value)| {
        let mut script = base();
        for (call, data) in task(start, "OK") {
            script.entry(call).or_default().push((200, data));
        }
        let status =
            script.iter_mut().find(|(call, _)| call.ends_with("/status") && call.starts_with("GET /nodes"));
        status.unwrap().1.insert(0, first);
        script
    };
    let away = json!({"message": "node 'pve1' cannot be reached"});
    let fake = Fake::serve(answers((595, away))).await;
    let ended = fake.run(&["stead", "vm", "start", "100"]).await;
    assert_eq!((ended.code, ended.out.as_str()), (0, "starting\nstarted\n"), "{ended:?}");
    assert_eq!(ended.err, "waiting for the node: node 'pve1' cannot be reached\n");

    let fake = Fake::serve(answers((403, json!({"message": "Permission check failed"})))).await;
    let ended = fake.run(&["stead", "vm", "start", "100"]).await;
    assert_eq!((ended.code, ended.err.as_str()), (1, "error: Permission check failed\n"), "{ended:?}");
}

#[tokio::test]
async fn create_turns_short_options_into_the_configurations_own() {
    let start = "POST /nodes/pve1/qemu/102/status/start";
    let fake = Fake::new(&[("POST /nodes/pve1/qemu", Value::Null), (start, Value::Null)]).await;
    let words = "stead vm create --name web --memory 512 --disk local:8 --bridge vmbr0 --iso local:iso/a.iso --start \
                 scsihw=virtio-scsi-pci onboot=1";
    let ended = fake.run(&words.split_whitespace().collect::<Vec<_>>()).await;
    assert_eq!((ended.code, ended.out.as_str()), (0, "created\nstarted\nVM 102\n"), "{ended:?}");
    assert_eq!(
        fake.changes(),
        [
            "POST /nodes/pve1/qemu vmid=102&name=web&memory=512&scsi0=local%3A8&ide2=local%3Aiso%2Fa.iso%2Cmedia%3D\
             cdrom&net0=virtio%2Cbridge%3Dvmbr0&scsihw=virtio-scsi-pci&onboot=1",
            start
        ]
    );
}

#[tokio::test]
async fn qm_speaks_as_it_always_did() {
    let list = json!([{"vmid": 100, "name": "web", "status": "running", "maxmem": 536870912, "maxdisk": 1610612736u64, "pid": 4242}]);
    let fake = Fake::new(&[
        ("GET /nodes/pve1/qemu", list),
        ("GET /nodes/pve1/qemu/100/status/current", json!({"status": "running"})),
        (
            "GET /nodes/pve1/qemu/100/config",
            json!({"name": "web", "digest": "x", "cores": 2, "description": "a\nb"}),
        ),
        ("POST /nodes/pve1/qemu/100/config", Value::Null),
        ("POST /nodes/pve1/qemu/100/migrate", Value::Null),
        ("POST /nodes/pve1/qemu/100/monitor", json!("VM status: running\r\n")),
        ("DELETE /nodes/pve2/qemu/101", Value::Null),
        ("PUT /nodes/pve1/qemu/100/resize", Value::Null),
        ("PUT /nodes/pve1/qemu/100/sendkey", Value::Null),
        ("PUT /nodes/pve1/qemu/100/unlink", Value::Null),
        ("POST /nodes/pve1/qemu", Value::Null),
    ])
    .await;
    let list = fake.run(&["qm", "list"]).await;
    assert_eq!(
        list.out,
        "VMID  NAME  STATUS   MEM(MB)  BOOTDISK(GB)   PID\n 100  web   running      512          1.50  4242\n"
    );
    assert_eq!(fake.run(&["qm", "status", "100"]).await.out, "status: running\n");
    assert_eq!(fake.run(&["qm", "config", "100"]).await.out, "cores: 2\ndescription: a%0Ab\nname: web\n");
    for options in ["qm config 100 --snapshot s1 --current 0", "qm list --full"] {
        assert_eq!(fake.run(&options.split(' ').collect::<Vec<_>>()).await.code, 0, "{options}");
    }
    let read = fake.calls();
    for call in ["GET /nodes/pve1/qemu/100/config?snapshot=s1&current=0", "GET /nodes/pve1/qemu?full=1"] {
        assert!(read.iter().any(|c| c == call), "{call}: {read:?}");
    }
    for words in [
        "qm set 100 --memory 1024 -name db --delete ide2",
        "qm migrate 100 pve2 --online",
        "qm destroy 101 --purge",
        "qm resize 100 scsi0 +8G",
        "qm disk unlink 100 --idlist unused0",
        "qm create 200 --memory=512 --scsi0 local:8",
        "stead vm monitor 100 info status",
        "qm sendkey 100 ctrl-alt-delete --skiplock",
        "stead vm sendkey 100 ret",
    ] {
        let ended = fake.run(&words.split(' ').collect::<Vec<_>>()).await;
        assert_eq!(ended.code, 0, "{words}: {ended:?}");
    }
    assert_eq!(
        fake.changes(),
        [
            "POST /nodes/pve1/qemu/100/config memory=1024&name=db&delete=ide2",
            "POST /nodes/pve1/qemu/100/migrate online=1&target=pve2",
            "DELETE /nodes/pve2/qemu/101?purge=1",
            "PUT /nodes/pve1/qemu/100/resize disk=scsi0&size=%2B8G",
            "PUT /nodes/pve1/qemu/100/unlink idlist=unused0",
            "POST /nodes/pve1/qemu memory=512&scsi0=local%3A8&vmid=200",
            "POST /nodes/pve1/qemu/100/monitor command=info%20status",
            "PUT /nodes/pve1/qemu/100/sendkey skiplock=1&key=ctrl-alt-delete",
            "PUT /nodes/pve1/qemu/100/sendkey key=ret",
        ]
    );
}

#[tokio::test]
async fn what_a_guest_is_told_is_shown_and_written() {
    let fake = Fake::new(&[
        (
            "GET /nodes/pve1/qemu/100/cloudinit",
            json!([{"key": "ciuser", "value": "zoe", "pending": "ada"}, {"key": "name", "value": "web", "delete": 1}]),
        ),
        ("GET /nodes/pve1/qemu/100/cloudinit/dump", json!("#cloud-config\nuser: \"ada\"\n")),
        ("PUT /nodes/pve1/qemu/100/cloudinit", Value::Null),
    ])
    .await;
    for tool in ["qm", "stead vm"] {
        let run = async |words: &str| {
            fake.run(&format!("{tool} cloudinit {words}").split(' ').collect::<Vec<_>>()).await
        };
        let pending = run("pending 100").await;
        assert!(pending.code == 0 && pending.out.contains("ON THE DRIVE"), "{pending:?}");
        assert!(
            pending.out.lines().any(|l| l.split_whitespace().take(3).eq(["ciuser", "zoe", "ada"])),
            "{pending:?}"
        );
        assert_eq!(run("dump 100 user").await.out, "#cloud-config\nuser: \"ada\"\n");
        assert_eq!(run("update 100").await.out, "VM 100: its cloud-init drive is written\n");
        assert_eq!(run("dump 100").await.code, 2);
    }
    assert!(fake.calls().contains(&"GET /nodes/pve1/qemu/100/cloudinit/dump?type=user".to_owned()));
    assert_eq!(fake.changes(), ["PUT /nodes/pve1/qemu/100/cloudinit"; 2]);
    assert_eq!(fake.run(&["qm", "cloudinit", "burn", "100"]).await.code, 1);
}

#[tokio::test]
async fn snapshots_are_taken_listed_gone_back_to_and_removed() {
    const ALL: &str = "/nodes/pve1/qemu/100/snapshot";
    let list = json!([
        {"name": "s2", "description": "two\nlines", "parent": "s1", "snaptime": 1700003600, "vmstate": 0},
        {"name": "s1", "description": "", "snaptime": 1700000000, "vmstate": 0},
        {"name": "current", "description": "What the VM is now", "parent": "s2", "digest": "x", "running": 1},
    ]);
    let fake = Fake::new(&[
        (&format!("GET {ALL}"), list),
        (&format!("POST {ALL}"), Value::Null),
        (&format!("POST {ALL}/s1/rollback"), Value::Null),
        (&format!("DELETE {ALL}/s1"), Value::Null),
    ])
    .await;
    let table = "NAME           TIME                 MEMORY  DESCRIPTION\n\
                 `-> s1         2023-11-14 22:13:20  no\n \
                 `-> s2        2023-11-14 23:13:20  no      two\n  \
                 `-> current  -                    -       What the VM is now\n";
    for words in ["stead vm listsnapshot 100", "qm listsnapshot 100"] {
        let listed = fake.run(&words.split(' ').collect::<Vec<_>>()).await;
        let trimmed: Vec<&str> = listed.out.lines().map(str::trim_end).collect();
        assert_eq!(trimmed.join("\n") + "\n", table, "{words}: {listed:?}");
    }
    for words in [
        "stead vm snapshot 100 s1 --description now --vmstate",
        "stead vm rollback 100 s1 --start --yes",
        "stead vm delsnapshot 100 s1",
        "qm snapshot 100 s1 --description now --vmstate",
        "qm rollback 100 s1 --start",
        "qm rollback 100 s1",
        "qm delsnapshot 100 s1 --force",
    ] {
        let ended = fake.run(&words.split(' ').collect::<Vec<_>>()).await;
        assert_eq!(ended.code, 0, "{words}: {ended:?}");
    }
    let asked = fake.run(&["stead", "vm", "rollback", "100", "s1"]).await;
    assert!(asked.code == 2 && asked.err.contains("give --yes"), "{asked:?}");
    assert_eq!(fake.run(&["qm", "snapshot", "100"]).await.code, 2);
    assert_eq!(
        fake.changes(),
        [
            &format!("POST {ALL} description=now&vmstate=1&snapname=s1"),
            &format!("POST {ALL}/s1/rollback start=1"),
            &format!("DELETE {ALL}/s1"),
            &format!("POST {ALL} description=now&vmstate=1&snapname=s1"),
            &format!("POST {ALL}/s1/rollback start=1"),
            &format!("POST {ALL}/s1/rollback"),
            &format!("DELETE {ALL}/s1?force=1"),
        ]
        .map(String::as_str)
    );
}

#[tokio::test]
async fn programs_run_in_a_guest_by_its_agent() {
    let fake = Fake::new(&[
        ("GET /nodes/pve1/qemu/100/status/current", json!({"status": "running"})),
        ("POST /nodes/pve1/qemu/100/agent", json!({"result": {"id": "debian"}})),
        ("POST /nodes/pve1/qemu/100/agent/exec", json!({"pid": 42})),
        (
            "GET /nodes/pve1/qemu/100/agent/exec-status",
            json!({"exited": 1, "exitcode": 3, "out-data": "a\nb\n", "err-data": "oh\n"}),
        ),
    ])
    .await;
    for line in ["qm guest cmd 100 get-osinfo", "qm agent 100 get-osinfo", "stead vm agent 100 get-osinfo"] {
        let ended = fake.run(&line.split(' ').collect::<Vec<_>>()).await;
        assert_eq!((ended.code, ended.out.contains("\"debian\"")), (0, true), "{line}: {ended:?}");
    }
    let ran = fake.run(&["stead", "vm", "exec", "100", "--", "ls", "-l", "a, b"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (1, "a\nb\n"));
    assert!(
        ran.err.starts_with("oh\n") && ran.err.contains("'ls -l a, b' ended with exit code 3"),
        "{}",
        ran.err
    );
    let ran = fake.run(&["qm", "guest", "exec", "100", "--timeout", "5", "--", "ls", "-l"]).await;
    assert!(ran.code == 0 && ran.out.contains("\"exitcode\": 3"), "{ran:?}");
    let ran = fake.run(&["qm", "guest", "exec", "100", "--synchronous", "0", "--", "ls"]).await;
    assert!(ran.code == 0 && ran.out.contains("\"pid\": 42"), "{ran:?}");
    assert_eq!(fake.run(&["qm", "guest", "exec-status", "100", "42"]).await.code, 0);
    assert_eq!(fake.run(&["qm", "guest", "exec", "100"]).await.code, 2);
    let execs: Vec<String> = fake.changes().into_iter().filter(|c| c.contains("/exec ")).collect();
    assert_eq!(
        execs,
        [
            "POST /nodes/pve1/qemu/100/agent/exec command=ls&command=-l&command=a%2C%20b",
            "POST /nodes/pve1/qemu/100/agent/exec command=ls&command=-l",
            "POST /nodes/pve1/qemu/100/agent/exec command=ls",
        ]
    );
}

#[tokio::test]
async fn pvesh_calls_the_api_as_it_is() {
    let openapi =
        json!({"paths": {"/version": {"get": {}}, "/nodes/{node}": {"get": {}}, "/nodes": {"get": {}}}});
    let fake = Fake::new(&[
        ("GET /version", json!({"version": "9.0.3", "release": "9.0"})),
        ("POST /pools", Value::Null),
        ("GET /api2/openapi.json", openapi),
    ])
    .await;
    assert_eq!(fake.run(&["pvesh", "get", "/version"]).await.out, "release  9.0\nversion  9.0.3\n");
    let json = fake.run(&["pvesh", "get", "version", "--output-format", "json"]).await;
    assert_eq!(serde_json::from_str::<Value>(&json.out).unwrap()["release"], "9.0");
    assert_eq!(fake.run(&["pvesh", "ls", "/"]).await.out, "Dr---  nodes\n-r---  version\n");
    assert_eq!(fake.run(&["stead", "api", "create", "/pools", "--poolid", "a b"]).await.code, 0);
    assert_eq!(fake.changes(), ["POST /pools poolid=a%20b"]);
}

#[tokio::test]
async fn pvecm_pvesm_and_ha_manager_speak_as_they_always_did() {
    let ha = json!([{"type": "quorum", "status": "OK"}, {"type": "service", "sid": "vm:100", "node": "pve1", "state": "started"}]);
    let storages = json!([{"storage": "local", "type": "dir", "active": 1, "enabled": 1, "total": 4096, "used": 1024, "avail": 3072}]);
    let fake = Fake::new(&[
        ("GET /cluster/ha/status/current", ha),
        ("POST /cluster/ha/resources", Value::Null),
        ("DELETE /cluster/ha/resources/vm%3A100", Value::Null),
        ("DELETE /cluster/config/nodes/pve2", Value::Null),
        ("GET /nodes/pve1/storage", storages),
        ("POST /nodes/pve1/storage/local/content", json!("local:100/vm-100-disk-0.raw")),
        ("DELETE /nodes/pve1/storage/local/content/local%3A100%2Fvm-100-disk-0.raw", Value::Null),
        ("POST /storage", Value::Null),
        ("POST /cluster/ha/resources/vm%3A100/migrate", json!({})),
        ("GET /cluster/config/apiversion", json!(1)),
        ("GET /nodes/pve1/storage/local/content/local%3Aiso%2Fa.iso", json!({"path": "/x/a.iso", "size": 1})),
    ])
    .await;
    assert_eq!(fake.run(&["ha-manager", "status"]).await.out, "quorum OK\nservice vm:100 (pve1, started)\n");
    let status = fake.run(&["pvecm", "status"]).await;
    assert!(status.out.contains("\nQuorate:          Yes\n"), "{status:?}");
    let status = fake.run(&["pvesm", "status"]).await;
    assert!(
        status.out.ends_with("local  dir   active            4           1                3  25.0 %\n"),
        "{status:?}"
    );
    assert_eq!(fake.run(&["pvecm", "apiver"]).await.out, "1\n");
    assert_eq!(fake.run(&["pvesm", "path", "local:iso/a.iso"]).await.out, "/x/a.iso\n");
    for words in [
        "ha-manager crm-command migrate vm:100 pve2",
        "ha-manager add vm:100 --state started --max_restart 2",
        "ha-manager remove vm:100",
        "pvecm delnode pve2",
        "pvesm alloc local 100 vm-100-disk-0.raw 1G",
        "pvesm free local:100/vm-100-disk-0.raw",
        "pvesm add dir other --path /x --content images,iso",
    ] {
        let ended = fake.run(&words.split(' ').collect::<Vec<_>>()).await;
        assert_eq!(ended.code, 0, "{words}: {ended:?}");
    }
    assert_eq!(
        fake.changes(),
        [
            "POST /cluster/ha/resources/vm%3A100/migrate node=pve2",
            "POST /cluster/ha/resources state=started&max_restart=2&sid=vm%3A100",
            "DELETE /cluster/ha/resources/vm%3A100",
            "DELETE /cluster/config/nodes/pve2",
            "POST /nodes/pve1/storage/local/content vmid=100&filename=vm-100-disk-0.raw&size=1G",
            "DELETE /nodes/pve1/storage/local/content/local%3A100%2Fvm-100-disk-0.raw",
            "POST /storage path=%2Fx&content=images%2Ciso&type=dir&storage=other",
        ]
    );
}

#[tokio::test]
async fn refusals_and_wrong_use_have_their_own_exit_codes() {
    let body =
        json!({"message": "Parameter verification failed.", "errors": {"memory": "must be at least 16"}});
    let fake = Fake::refusing("POST /nodes/pve1/qemu/100/config", 400, body).await;
    let refused = fake.run(&["stead", "vm", "set", "100", "memory=1"]).await;
    assert_eq!(
        (refused.code, refused.err.as_str()),
        (1, "error: Parameter verification failed.\n  memory: must be at least 16\n")
    );
    let none = fake.run(&["qm", "start", "999"]).await;
    assert_eq!((none.code, none.err.as_str()), (1, "error: VM 999 does not exist\n"));
    for words in [
        &["stead", "vm", "start"][..],
        &["stead", "vm", "start", "web"],
        &["stead", "vm", "set", "100"],
        &["stead", "vm", "delete", "100"],
        &["stead", "nonsense"],
        &["stead", "cluster", "join", "nonsense"],
        &["qm", "migrate", "100"],
        &["qm", "nonsense", "100"],
        &["pvesh", "burn", "/x"],
        &["pvesm", "free", "x"],
        &["ha-manager"],
    ] {
        let ended = fake.run(words).await;
        assert_eq!(ended.code, 2, "{words:?}: {ended:?}");
        assert!(!ended.err.is_empty());
    }
    assert_eq!(fake.changes().len(), 1);
    let lonely = fake.run(&["stead", "--dir", "/nowhere", "vm", "list"]).await;
    assert!(
        lonely.code == 1 && lonely.err.contains("no daemon can be reached at /nowhere/run/api.sock"),
        "{lonely:?}"
    );
}

#[tokio::test]
async fn help_version_and_completion_need_no_server() {
    let fake = Fake::new(&[]).await;
    for words in [
        &["stead", "--help"][..],
        &["stead", "vm", "create", "--help"],
        &["qm", "help"],
        &["stead", "qm", "--help"],
    ] {
        let ended = fake.run(words).await;
        assert!(ended.code == 0 && ended.out.len() > 200 && ended.err.is_empty(), "{words:?}: {ended:?}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = fake.run(&["stead", "completion", shell]).await;
        assert!(script.code == 0 && script.out.contains("migrate"), "{shell}");
    }
    assert!(fake.calls().is_empty());
}

#[tokio::test]
async fn a_file_is_uploaded_as_one_multipart_body() {
    let fake = Fake::new(&[("POST /nodes/pve1/storage/local/upload", Value::Null)]).await;
    let file = fake.path("small.iso");
    std::fs::write(&file, "content of the image").unwrap();
    let ended = fake.run(&["stead", "storage", "upload", "local", file.to_str().unwrap()]).await;
    assert_eq!((ended.code, ended.out.as_str()), (0, "uploaded\n"), "{ended:?}");
    let sent = fake.changes().remove(0);
    let parts: Vec<&str> = sent.split("\r\n").filter(|l| !l.starts_with("--")).collect();
    assert_eq!(
        parts[2..],
        [
            "",
            "iso",
            "Content-Disposition: form-data; name=\"filename\"; filename=\"small.iso\"",
            "Content-Type: application/octet-stream",
            "",
            "content of the image"
        ],
        "{sent}"
    );
}

#[tokio::test]
async fn what_the_tools_do_not_know_is_said_and_sent_nowhere() {
    let fake = Fake::new(&[("GET /version", json!({"version": "9.0.3"}))]).await;
    for words in ["pvesh get /version --noborder --human-readable 1", "pvesh get /version --noheader 0"] {
        assert_eq!(fake.run(&words.split(' ').collect::<Vec<_>>()).await.code, 0, "{words}");
    }
    assert_eq!(fake.calls(), ["GET /version", "GET /version"]);
    for (words, said) in [
        ("pvesh get /version --noheader", "not supported yet"),
        ("pvesh get /version --output-format yaml", "yaml is not supported yet"),
        ("qm disk rescan", "not supported yet"),
        ("pvesh get /version --quiet", "--quiet: that is not supported yet"),
        ("qm terminal 100 --escape ^A", "--escape ^A: that is not supported yet"),
        ("qm status 100 --snapshot s1", "there is no option --snapshot here"),
        ("qm pending 100 --current", "there is no option --current here"),
        ("ha-manager migrate vm:100 pve2 --state started", "there is no option --state here"),
        ("pct list", "pct: containers are not supported yet"),
        ("stead vzdump 100", "vzdump: backups are not supported yet"),
    ] {
        let ended = fake.run(&words.split(' ').collect::<Vec<_>>()).await;
        assert!(ended.code != 0 && ended.err.contains(said), "{words}: {ended:?}");
    }
    assert!(fake.changes().is_empty());
}

#[tokio::test]
async fn tokens_are_shown_once_and_whole() {
    let fake =
        Fake::new(&[("POST /access/users/root%40pam/token/ci", json!({"value": "0f0f", "info": {}}))]).await;
    let ended = fake.run(&["stead", "token", "create", "root@pam!ci", "--comment", "x"]).await;
    assert_eq!((ended.code, ended.out.as_str()), (0, "root@pam!ci=0f0f\n"), "{ended:?}");
    assert_eq!(fake.changes(), ["POST /access/users/root%40pam/token/ci privsep=1&comment=x"]);
}

/// A node's TLS port that answers `/version` to whoever shows a ticket or token, and gives tickets.
async fn tls_node() -> (stead_transport::Server, std::net::SocketAddr, String) {
    use stead_transport::{ClusterCa, Credentials, Limits, NodeKey, PeerIdentity, Server, Tls, full};
    let uuid = "00000000-0000-4000-8000-000000000001";
    let now = std::time::SystemTime::now();
    let ca = ClusterCa::create("prod", uuid, now).unwrap();
    let key = NodeKey::generate().unwrap();
    let me = PeerIdentity { name: "pve1".parse().unwrap(), uuid: uuid.parse().unwrap() };
    let cert = ca.sign(&key.signing_request(&me.name).unwrap(), &me, &[], now).unwrap();
    let credentials = Credentials { ca_pem: ca.cert_pem().into(), cert_pem: cert, key_pem: key.to_pem() };
    let tls = Tls::new(&credentials, None, Arc::new(|_: &stead_model::NodeUuid| true)).unwrap();
    let fingerprint = tls.fingerprint().to_string();
    let handler: stead_transport::Handler = Arc::new(|request, _| {
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let has = |name: &str, value: &str| head.headers.get(name).is_some_and(|v| v == value);
            let (status, text) = match head.uri.path() {
                "/api2/json/access/ticket" if body == "username=admin%40pve&password=p%26w" => {
                    (200, r#"{"data":{"ticket":"PVE:x","CSRFPreventionToken":"c"}}"#)
                }
                "/api2/json/version"
                    if has("cookie", "PVEAuthCookie=PVE:x")
                        || has("authorization", "PVEAPIToken=root@pam!ci=1-2") =>
                {
                    (200, r#"{"data":{"version":"9.0.3","stead":"0.1.0"}}"#)
                }
                _ => (401, r#"{"message":"authentication failure"}"#),
            };
            let mut response = Response::new(full(text));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            response
        })
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = Server::new(tls, handler, Limits::default());
    server.listen_tls(listener);
    (server, addr, fingerprint)
}

#[tokio::test]
async fn another_machine_is_spoken_to_only_when_it_is_known() {
    let fake = Fake::new(&[]).await;
    let (_server, addr, fingerprint) = tls_node().await;
    let server = format!("https://{addr}");
    let run = async |words: &[&str]| {
        let all: Vec<&str> = ["stead", "--server", &server].iter().chain(words).copied().collect();
        fake.run(&all).await
    };
    let unknown = run(&["version"]).await;
    assert!(unknown.code == 2 && unknown.err.contains(&fingerprint), "{unknown:?}");
    let joining = fake.run(&["pvecm", "add", &addr.to_string()]).await;
    assert!(joining.code == 2 && joining.out.contains(&fingerprint), "{joining:?}");
    assert!(
        joining.err.ends_with("There is no terminal to ask on: give --fingerprint with it\n"),
        "{joining:?}"
    );
    let pinned = ["--fingerprint", &fingerprint];
    let user = ["--user", "admin@pve", "--password"];
    let good = run(&[&pinned[..], &user, &["p&w", "version"]].concat()).await;
    assert!(good.code == 0 && good.out.ends_with("steadd 0.1.0, API as of Proxmox VE 9.0.3\n"), "{good:?}");
    let token = run(&[&pinned[..], &["--api-token", "root@pam!ci=1-2", "version"]].concat()).await;
    assert_eq!(token.code, 0, "{token:?}");
    let wrong = run(&[&pinned[..], &user, &["wrong", "version"]].concat()).await;
    assert!(
        wrong.code == 1 && wrong.err.contains("has refused user 'admin@pve': authentication failure"),
        "{wrong:?}"
    );
    let other =
        run(&["--fingerprint", &vec!["00"; 32].join(":"), "--api-token", "root@pam!ci=1-2", "version"]).await;
    assert!(other.code == 1 && other.err.contains("shows another certificate than expected"), "{other:?}");
}

#[tokio::test]
async fn pveum_knows_tokens() {
    let made = json!({"full-tokenid": "root@pam!ci", "info": {"privsep": "0"}, "value": "secret-1"});
    let path = "/access/users/root%40pam/token/ci";
    let fake = Fake::new(&[
        (&format!("POST {path}"), made),
        (&format!("DELETE {path}"), Value::Null),
        (&format!("PUT {path}"), json!({"privsep": 1, "full-tokenid": "root@pam!ci", "value": "secret-2"})),
        (&format!("PUT {path}"), json!({"privsep": 1, "comment": "x"})),
        ("GET /access/users/root%40pam/token", json!([{"tokenid": "ci", "expire": 0, "privsep": 0}])),
    ])
    .await;
    let ended = fake.run(&["pveum", "user", "token", "add", "root@pam", "ci", "--privsep", "0"]).await;
    assert!(ended.code == 0 && ended.out.contains("secret-1"), "{ended:?}");
    let ended = fake.run(&["pveum", "user", "token", "list", "root@pam"]).await;
    assert!(ended.code == 0 && ended.out.contains("ci") && ended.out.contains("never"), "{ended:?}");
    let ended = fake.run(&["pveum", "user", "token", "modify", "root@pam", "ci", "--regenerate"]).await;
    assert!(
        ended.code == 0 && ended.out.contains("secret-2") && ended.out.contains("root@pam!ci"),
        "{ended:?}"
    );
    let ended = fake.run(&["pveum", "user", "token", "modify", "root@pam", "ci", "--comment", "x"]).await;
    assert_eq!((ended.code, ended.out.as_str()), (0, "root@pam!ci changed\n"), "{ended:?}");
    assert_eq!(fake.run(&["stead", "pveum", "user", "token", "remove", "root@pam", "ci"]).await.code, 0);
    assert_eq!(
        fake.changes(),
        [
            format!("POST {path} privsep=0"),
            format!("PUT {path} regenerate=1"),
            format!("PUT {path} comment=x"),
            format!("DELETE {path}")
        ]
    );
    assert_eq!(fake.run(&["pveum", "acl", "list"]).await.code, 2, "its other parts are not there");
}

#[tokio::test]
async fn a_password_file_is_read_or_said_to_be_unreadable() {
    let fake = Fake::new(&[]).await;
    let file = fake.path("password");
    let server = ["stead", "--server", "127.0.0.1:1", "--insecure", "--password-file"];
    let run = async || fake.run(&[&server[..], &[file.to_str().unwrap(), "status"]].concat()).await;
    let ended = run().await;
    assert!(ended.code == 2 && ended.err.contains("--password-file"), "{ended:?}");
    std::fs::write(&file, "\n").unwrap();
    assert!(run().await.err.contains("first line is empty"));
    std::fs::write(&file, "secret\nnobody reads this\n").unwrap();
    let ended = run().await;
    assert!(ended.code == 1 && ended.err.contains("cannot connect"), "{ended:?}");
}

/// A node that sends a few events and ends the stream.
#[tokio::test]
async fn events_are_shown_and_the_end_says_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("run")).unwrap();
    let listener = UnixListener::bind(dir.path().join("run/api.sock")).unwrap();
    let service = service_fn(async |request: Request<Incoming>| {
        assert_eq!(request.uri(), "/api2/json/cluster/events?since=9-1");
        let text = ": following\n\nid: 9-2\nevent: node\ndata: {\"kind\":\"node\",\"id\":\"node/pve1\",\"data\":{}}\n\n\
                    id: 9-3\nevent: guest\ndata: {\"kind\":\"guest\",\"id\":\"qemu/100\",\"data\":{\"status\":\"running\"}}\n\n";
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
    });
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let server = hyper::server::conn::http1::Builder::new();
        server.serve_connection(TokioIo::new(stream), service).await.unwrap();
    });
    let mut command = Command::new(env!("CARGO_BIN_EXE_stead"));
    command.args(["events", "--since", "9-1", "--kind", "guest", "-o", "json"]).kill_on_drop(true);
    command.env("STEAD_DIR", dir.path()).env_remove("STEAD_SERVER");
    let limit = std::time::Duration::from_secs(60);
    let output = tokio::time::timeout(limit, command.output()).await.unwrap().unwrap();
    let event: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        event,
        json!({"cursor": "9-3", "event": "guest", "id": "qemu/100", "data": {"status": "running"}})
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("stead events --since 9-3"));
}
