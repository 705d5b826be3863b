//! Clients' first steps against one node's use cases: signing in, tokens, a VM's life, and who may what.

use crate::bed::{self, Node, Who};
use serde_json::{Value, json};

/// Two users: one with a VM of their own, one who may look at everything.
const USERS: &str = "user:owner@pve:1:0:::::\nuser:auditor@pve:1:0:::::\nuser:gone@pve:0:0:::::\n\
    acl:1:/vms/100:owner@pve:PVEVMUser:\nacl:1:/:auditor@pve:PVEAuditor:\n";
const ALL: [&str; 4] = ["root@pam", "owner@pve", "auditor@pve", "gone@pve"];

async fn with_a_vm(node: &Node, root: &Who) {
    let form = "vmid=100&name=web&memory=64&cores=1&scsi0=local:1&net0=virtio";
    let upid = node.ask(root, "POST", "/nodes/n1/qemu", form).await.data();
    assert_eq!(node.done(&upid).await, "OK");
}

#[tokio::test]
async fn signing_in_gives_a_ticket_that_renews_itself() {
    let node = Node::start(USERS, &ALL).await;
    let form = |user: &str, password: &str| format!("username={user}&password={password}");
    let post = |form: String| async { node.ask(&Who::Nobody, "POST", "/access/ticket", &{ form }).await };
    for (user, password) in
        [("root@pam", "wrong"), ("no@pve", "correct+horse"), ("gone@pve", "correct+horse"), ("x", "y")]
    {
        let refused = post(form(user, password)).await;
        assert_eq!(refused.line, "401 authentication failure", "{user}");
    }
    let first = post("username=root&realm=pam&password=correct+horse".into()).await.data();
    assert_eq!(first["username"], "root@pam");
    assert_eq!(first["clustername"], "test");
    assert_eq!(first["cap"]["vms"]["VM.Allocate"], 1);
    let ticket = first["ticket"].as_str().unwrap().replace('+', "%2B");
    let again = post(form("root@pam", &ticket)).await.data();
    assert!(again["ticket"].as_str().unwrap().starts_with("PVE:root@pam:"));
    let other = post(form("owner@pve", &ticket)).await;
    assert_eq!(other.line, "401 authentication failure", "a ticket is its user's password alone");
    let otp = post("username=root@pam&password=x&otp=123456".into()).await;
    assert_eq!(otp.body["errors"]["otp"], "second factors are not supported yet");
}

#[tokio::test]
async fn wrong_passwords_are_answered_later_and_later() {
    let node = std::sync::Arc::new(Node::start(USERS, &ALL).await);
    let (answers, mut answered) = tokio::sync::mpsc::channel(16);
    // All at once: six are checked, the next wait their turn, and one that would wait too long is not checked.
    let mut guesses = tokio::task::JoinSet::new();
    for _ in 0..9 {
        let (node, answers) = (node.clone(), answers.clone());
        guesses.spawn(async move {
            let form = "username=root@pam&password=guess";
            answers.send(node.ask(&Who::Nobody, "POST", "/access/ticket", form).await.line).await.unwrap();
        });
    }
    let mut checked = 0;
    loop {
        let line = answered.recv().await.unwrap();
        if line == "401 authentication failure" {
            checked += 1;
            continue;
        }
        assert!(
            line.starts_with("401 authentication failure: too many wrong passwords, try again in "),
            "{line}"
        );
        break;
    }
    assert!(checked <= 7, "{checked} were checked before one was refused");
    guesses.abort_all();
    let elsewhere = std::net::IpAddr::from([192, 0, 2, 1]);
    let owner = "owner@pve".parse().unwrap();
    let other = node.ops.check_password(&owner, bed::PASSWORD.into(), elsewhere, 1).await;
    assert_eq!(other, Ok(()), "another user from another address is not braked");
}

#[tokio::test]
async fn a_password_is_changed_by_its_user_who_confirms_it_and_by_root() {
    let node = Node::start(USERS, &ALL).await;
    let (root, owner) = (node.sign_in("root@pam").await, node.sign_in("owner@pve").await);
    let change = async |who: &Who, form: &str| node.ask(who, "PUT", "/access/password", form).await;
    let new = "userid=owner@pve&password=battery+staple";
    let unconfirmed = change(&owner, new).await;
    let why = |a: &bed::Answer| a.body["errors"]["confirmation-password"].as_str().unwrap().to_owned();
    assert_eq!(why(&unconfirmed), "your own password is needed to confirm this");
    let wrong = change(&owner, &format!("{new}&confirmation-password=guess")).await;
    assert_eq!(why(&wrong), "this is not your password");
    let confirmed = format!("{new}&confirmation-password={}", bed::PASSWORD.replace(' ', "+"));
    assert_eq!(change(&owner, &confirmed).await.data(), Value::Null);
    let sign_in = async |password: &str| {
        let form = format!("username=owner@pve&password={password}");
        node.ask(&Who::Nobody, "POST", "/access/ticket", &form).await.line
    };
    assert_eq!(sign_in("correct+horse").await, "401 authentication failure");
    assert_eq!(sign_in("battery+staple").await, "200 OK");
    let Who::Ticket(stolen, _) = &owner else { panic!("a ticket") };
    assert!(
        node.ask(&owner, "GET", "/version", "").await.line.starts_with("401 "),
        "tickets end with the password"
    );
    assert_eq!(
        sign_in(&stolen.replace('+', "%2B")).await,
        "401 authentication failure",
        "nor are they renewed"
    );
    assert_eq!(node.ask(&root, "GET", "/version", "").await.line, "200 OK", "others' go on");

    assert_eq!(change(&root, "userid=owner@pve&password=by+root+alone").await.data(), Value::Null);
    assert_eq!(sign_in("by+root+alone").await, "200 OK");
    let short = change(&root, "userid=owner@pve&password=short").await;
    assert_eq!(short.body["errors"]["password"], "a password must have at least 8 characters");
    let unknown = change(&root, "userid=nobody@pve&password=long+enough").await;
    assert_eq!(unknown.line, "500 no such user ('nobody@pve')");
    let own = change(&root, "userid=root@pam&password=long+enough").await;
    assert_eq!(why(&own), "your own password is needed to confirm this", "root's ticket alone does not do");
    let owner = node.sign_in_with("owner@pve", "by root alone").await;
    for (who, userid) in [(&owner, "root@pam"), (&owner, "auditor@pve")] {
        let refused = change(who, &format!("userid={userid}&password=long+enough")).await;
        assert!(refused.line.starts_with("403 "), "{userid}: {}", refused.line);
    }
    let token = node.ask(&owner, "POST", "/access/users/owner@pve/token/ci", "privsep=0").await.data();
    let token = Who::Token(format!("owner@pve!ci={}", token["value"].as_str().unwrap()));
    assert!(change(&token, &confirmed).await.line.starts_with("403 "), "a token is not its user");
}

#[tokio::test]
async fn passwords_that_cannot_be_read_end_tickets_and_nothing_else() {
    let node = Node::start(USERS, &ALL).await;
    let owner = node.sign_in("owner@pve").await;
    let token = node.ask(&owner, "POST", "/access/users/owner@pve/token/ci", "").await.data();
    let token = Who::Token(format!("owner@pve!ci={}", token["value"].as_str().unwrap()));
    let damaged = node.ops.conf.put_secret("root@pam", "damage", stead_model::paths::SHADOW_CFG, b"no line");
    damaged.await.unwrap();
    assert!(node.ask(&owner, "GET", "/version", "").await.line.starts_with("401 "));
    assert_eq!(node.ask(&token, "GET", "/version", "").await.line, "200 OK");
}

#[tokio::test]
async fn a_vm_is_made_started_changed_and_removed() {
    let node = Node::start(USERS, &ALL).await;
    let root = node.sign_in("root@pam").await;
    assert_eq!(node.ask(&root, "GET", "/version", "").await.data()["version"], "9.0.3");
    assert_eq!(node.ask(&root, "GET", "/cluster/nextid", "").await.data(), 100);
    with_a_vm(&node, &root).await;
    assert_eq!(node.ask(&root, "GET", "/cluster/nextid", "").await.data(), 101);

    let config = node.ask(&root, "GET", "/nodes/n1/qemu/100/config", "").await.data();
    assert!(config["net0"].as_str().unwrap().starts_with("virtio=BC:24:11:"), "{config}");
    assert!(config["scsi0"].as_str().unwrap().ends_with("size=1G"), "{config}");
    let stale = node.ask(&root, "PUT", "/nodes/n1/qemu/100/config", "cores=2&digest=0000").await;
    assert!(stale.line.starts_with("500 detected modified configuration"), "{}", stale.line);
    let put = node.ask(&root, "PUT", "/nodes/n1/qemu/100/config", "cores=2&onboot=yes").await;
    assert_eq!(put.data(), Value::Null);
    let unknown =
        node.ask(&root, "PUT", "/nodes/n1/qemu/100/config", "spice_enhancements=foldersharing=1").await;
    assert_eq!(unknown.line, "400 Parameter verification failed.");
    assert!(unknown.body["errors"]["spice_enhancements"].is_string(), "{}", unknown.body);

    // No content type and no body, as clients send it.
    let upid = node.ask(&root, "POST", "/nodes/n1/qemu/100/status/start", "").await.data();
    assert_eq!(node.done(&upid).await, "OK");
    let resources = node.ask(&root, "GET", "/cluster/resources?type=vm", "").await.data();
    assert_eq!(resources[0]["status"], "running", "a task's result is shown once it has ended");
    assert_eq!(resources[0]["template"], 0);
    let current = node.ask(&root, "GET", "/nodes/n1/qemu/100/status/current", "").await.data();
    assert_eq!((&current["vmid"], &current["ha"]["managed"]), (&json!(100), &json!(0)));

    let status = format!("/nodes/n1/tasks/{}/status", upid.as_str().unwrap());
    assert_eq!(node.ask(&root, "GET", &status, "").await.data()["exitstatus"], "OK");
    let log = node.ask(&root, "GET", &status.replace("/status", "/log"), "").await;
    assert_eq!(log.data().as_array().unwrap().len() as u64, log.body["total"].as_u64().unwrap());

    let running = node.ask(&root, "DELETE", "/nodes/n1/qemu/100", "").await;
    assert!(running.line.starts_with("500 VM 100 is running"), "{}", running.line);
    let upid = node.ask(&root, "POST", "/nodes/n1/qemu/100/status/stop", "").await.data();
    assert_eq!(node.done(&upid).await, "OK");
    let upid = node.ask(&root, "DELETE", "/nodes/n1/qemu/100?purge=1", "").await.data();
    assert_eq!(node.done(&upid).await, "OK");
    let gone = node.ask(&root, "GET", "/nodes/n1/qemu/100/config", "").await;
    assert!(gone.line.starts_with("500 ") && gone.line.contains("does not exist"), "{}", gone.line);
    assert_eq!(node.ask(&root, "GET", "/nodes/n1/storage/local/content", "").await.data(), json!([]));
}

#[tokio::test]
async fn users_see_and_do_what_is_theirs() {
    let node = Node::start(USERS, &ALL).await;
    let root = node.sign_in("root@pam").await;
    with_a_vm(&node, &root).await;
    let upid = node.ask(&root, "POST", "/nodes/n1/qemu", "vmid=101&memory=64").await.data();
    assert_eq!(node.done(&upid).await, "OK");
    let (owner, auditor) = (node.sign_in("owner@pve").await, node.sign_in("auditor@pve").await);

    let ids =
        |v: Value| v.as_array().unwrap().iter().map(|r| r["vmid"].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!(ids(node.ask(&owner, "GET", "/cluster/resources?type=vm", "").await.data()), [100]);
    assert_eq!(ids(node.ask(&auditor, "GET", "/nodes/n1/qemu", "").await.data()), [100, 101]);
    assert_eq!(node.ask(&owner, "GET", "/storage", "").await.data(), json!([]));

    let upid = node.ask(&owner, "POST", "/nodes/n1/qemu/100/status/start", "").await.data();
    assert_eq!(node.done(&upid).await, "OK");
    let refused = |line: &str, path: &str| assert_eq!(line, format!("403 Permission check failed ({path})"));
    let other = node.ask(&owner, "POST", "/nodes/n1/qemu/101/status/start", "").await;
    refused(&other.line, "/vms/101, VM.PowerMgmt");
    let cores = node.ask(&owner, "PUT", "/nodes/n1/qemu/100/config", "cores=2").await;
    refused(&cores.line, "/vms/100, VM.Config.CPU");
    let make = node.ask(&owner, "POST", "/nodes/n1/qemu", "vmid=102").await;
    refused(&make.line, "/vms/102, VM.Allocate");
    let look = node.ask(&auditor, "POST", "/nodes/n1/qemu/100/status/stop", "").await;
    refused(&look.line, "/vms/100, VM.PowerMgmt");

    let tasks = |v: Value| {
        v.as_array().unwrap().iter().map(|t| t["user"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(tasks(node.ask(&owner, "GET", "/nodes/n1/tasks", "").await.data()), ["owner@pve"]);
    assert_eq!(tasks(node.ask(&auditor, "GET", "/nodes/n1/tasks", "").await.data()).len(), 3);
    let stop = format!("/nodes/n1/tasks/{}", upid.as_str().unwrap());
    refused(&node.ask(&auditor, "DELETE", &stop, "").await.line, "/nodes/n1, Sys.Modify");
    assert_eq!(node.ask(&owner, "DELETE", &stop, "").await.data(), Value::Null);
}

#[tokio::test]
async fn a_token_sees_its_own_tasks_and_its_user_all_of_them() {
    let tokens = "token:owner@pve!aa:0:0::\ntoken:owner@pve!bb:0:1::\n";
    let node = Node::start(&format!("{USERS}{tokens}"), &ALL).await;
    let root = node.sign_in("root@pam").await;
    with_a_vm(&node, &root).await;
    let owner = node.sign_in("owner@pve").await;
    let token = async |name: &str| {
        let path = format!("/access/users/owner@pve/token/{name}");
        let secret = node.ask(&owner, "PUT", &path, "regenerate=1").await.data()["value"].clone();
        Who::Token(format!("owner@pve!{name}={}", secret.as_str().unwrap()))
    };
    let (a, b) = (token("aa").await, token("bb").await);
    let by_owner = node.ask(&owner, "POST", "/nodes/n1/qemu/100/status/start", "").await.data();
    let by_a = node.ask(&a, "POST", "/nodes/n1/qemu/100/status/stop", "").await.data();
    for upid in [&by_owner, &by_a] {
        node.done(upid).await;
    }
    let seen = async |who: &Who| {
        let list = node.ask(who, "GET", "/nodes/n1/tasks", "").await.data();
        list.as_array().unwrap().len()
    };
    assert_eq!(seen(&owner).await, 2);
    assert_eq!(seen(&a).await, 1);
    assert_eq!(seen(&b).await, 0);
    for (who, upid, may) in
        [(&owner, &by_a, true), (&a, &by_owner, false), (&b, &by_a, false), (&a, &by_a, true)]
    {
        let path = format!("/nodes/n1/tasks/{}", upid.as_str().unwrap());
        for (method, path) in
            [("GET", format!("{path}/status")), ("GET", format!("{path}/log")), ("DELETE", path)]
        {
            let line = node.ask(who, method, &path, "").await.line;
            assert_eq!(line == "200 OK", may, "{method} {path}: {line}");
        }
    }
}

#[tokio::test]
async fn an_event_stream_ends_with_its_readers_rights() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let node = Node::start(USERS, &ALL).await;
    let owner = node.sign_in("owner@pve").await;
    let made = node.ask(&owner, "POST", "/access/users/owner@pve/token/ci", "privsep=0").await.data();
    let secret = made["value"].as_str().unwrap();
    let Who::Ticket(ticket, _) = node.sign_in("auditor@pve").await else { panic!("a ticket") };
    let follow = async |shown: String| {
        let mut stream = tokio::net::TcpStream::connect(node.addr).await.unwrap();
        let rq = format!(
            "GET /api2/json/cluster/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{shown}\r\n\r\n"
        );
        stream.write_all(rq.as_bytes()).await.unwrap();
        let mut begin = String::new();
        while !begin.contains("following") && !begin.contains("reset") {
            let mut some = [0; 4096];
            let n = stream.read(&mut some).await.unwrap();
            assert!(n > 0, "{begin}");
            begin += std::str::from_utf8(&some[..n]).unwrap();
        }
        stream
    };
    let mut by_token = follow(format!("Authorization: PVEAPIToken=owner@pve!ci={secret}")).await;
    let mut by_ticket = follow(format!("Cookie: PVEAuthCookie={ticket}")).await;
    let mut rest = String::new();
    node.ask(&owner, "PUT", "/access/users/owner@pve/token/ci", "regenerate=1").await.data();
    node.ops.events.emit("node", "node/after-the-secret", json!({}));
    by_token.read_to_string(&mut rest).await.unwrap();
    assert!(!rest.contains("after-the-secret"), "{rest}");

    let txn = stead_conf::Txn::new("root@pam")
        .put(stead_model::paths::USER_CFG, USERS.replace("auditor@pve:1", "auditor@pve:0").into_bytes());
    node.ops.conf.transact(txn).await.unwrap();
    node.ops.events.emit("node", "node/after-the-user", json!({}));
    rest.clear();
    by_ticket.read_to_string(&mut rest).await.unwrap();
    assert!(rest.contains("after-the-secret") && !rest.contains("after-the-user"), "{rest}");
}

#[tokio::test]
async fn what_is_no_task_has_nothing_below_and_comments_have_an_end() {
    let node = Node::start(USERS, &ALL).await;
    let root = node.sign_in("root@pam").await;
    let wrong = node.ask(&root, "GET", "/nodes/n1/tasks/UPID:xx", "").await;
    assert!(wrong.body["errors"]["upid"].is_string(), "{} {}", wrong.line, wrong.body);
    let comment = format!("comment={}", "x".repeat(256));
    let long = node.ask(&root, "POST", "/access/users/root@pam/token/ci", &comment).await;
    assert!(long.body["errors"]["comment"].is_string(), "{} {}", long.line, long.body);
    node.ask(&root, "POST", "/access/users/root@pam/token/ci", &comment[..263]).await.data();
    let change = node.ask(&root, "PUT", "/access/users/root@pam/token/ci", &comment).await;
    assert!(change.body["errors"]["comment"].is_string(), "{} {}", change.line, change.body);
}

#[tokio::test]
async fn a_console_is_opened_once_by_its_ticket() {
    let node = Node::start(USERS, &ALL).await;
    let root = node.sign_in("root@pam").await;
    with_a_vm(&node, &root).await;
    let upid = node.ask(&root, "POST", "/nodes/n1/qemu/100/status/start", "").await.data();
    assert_eq!(node.done(&upid).await, "OK");
    let open = async || {
        let proxy = node.ask(&root, "POST", "/nodes/n1/qemu/100/vncproxy", "").await.data();
        let ticket = proxy["ticket"].as_str().unwrap().replace('+', "%2B");
        format!("/nodes/n1/qemu/100/vncwebsocket?port={}&vncticket={ticket}", proxy["port"].as_str().unwrap())
    };
    // Without a handshake the ticket is used all the same: it has been seen.
    let (one, other) = (open().await, open().await);
    for path in [&one, &other] {
        let first = node.ask(&root, "GET", path, "").await.line;
        assert!(!first.starts_with("401"), "{first}");
        let again = node.ask(&root, "GET", path, "").await.line;
        assert_eq!(again, "401 permission denied - this PVEVNC ticket was used before: ask for a new one");
    }
}

#[tokio::test]
async fn an_upload_that_cannot_fit_is_refused_by_its_head() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let node = Node::start(USERS, &ALL).await;
    let Who::Ticket(ticket, csrf) = node.sign_in("root@pam").await else { panic!("a ticket") };
    let send = async |content: &str, name: &str, end: &str| {
        let body = format!(
            "{content}--B\r\nContent-Disposition: form-data; name=\"filename\"; filename=\"{name}\"\r\n\r\nhello{end}"
        );
        let length = if end.is_empty() { 1 << 30 } else { body.len() };
        let rq = format!(
            "POST /api2/json/nodes/n1/storage/local/upload HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Cookie: PVEAuthCookie={ticket}\r\nCSRFPreventionToken: {csrf}\r\nContent-Length: {length}\r\n\
             Content-Type: multipart/form-data; boundary=B\r\n\r\n{body}"
        );
        let mut s = tokio::net::TcpStream::connect(node.addr).await.unwrap();
        s.write_all(rq.as_bytes()).await.unwrap();
        let mut text = String::new();
        s.read_to_string(&mut text).await.unwrap();
        serde_json::from_str::<Value>(text.split_once("\r\n\r\n").unwrap().1).unwrap()
    };
    let is = |content: &str| {
        format!("--B\r\nContent-Disposition: form-data; name=\"content\"\r\n\r\n{content}\r\n")
    };
    for (content, name, parameter) in [
        (is("iso"), "x.txt", "filename"),
        (is("iso"), "a:b.iso", "filename"),
        (is("images"), "a.raw", "content"),
        (String::new(), "x.txt", "filename"),
    ] {
        let answer = send(&content, name, "").await;
        assert!(answer["errors"][parameter].is_string(), "{content} {name}: {answer}");
    }
    let kept = std::fs::read_dir(&node.ops.me.dir).unwrap();
    let left: Vec<_> =
        kept.map(|e| e.unwrap().file_name()).filter(|n| n.to_string_lossy().starts_with("spool")).collect();
    assert!(left.is_empty(), "{left:?}");
    let taken = send(&is("iso"), "A.ISO", "\r\n--B--\r\n").await;
    assert_eq!(node.done(&taken["data"]).await, "OK");
}

#[tokio::test]
async fn a_token_works_until_it_is_changed_or_removed() {
    let node = Node::start(USERS, &ALL).await;
    let owner = node.sign_in("owner@pve").await;
    let path = "/access/users/owner@pve/token/ci";
    let made = node.ask(&owner, "POST", path, "privsep=0&comment=builds").await.data();
    assert_eq!(made["full-tokenid"], "owner@pve!ci");
    let token = |secret: &Value| Who::Token(format!("owner@pve!ci={}", secret.as_str().unwrap()));
    let first = token(&made["value"]);
    let permissions = node.ask(&first, "GET", "/access/permissions?path=/vms/100", "").await.data();
    assert_eq!(permissions["/vms/100"]["VM.PowerMgmt"], 1);
    let twice = node.ask(&owner, "POST", path, "").await;
    assert_eq!(twice.body["errors"]["tokenid"], "Token already exists.");
    let own = node.ask(&first, "POST", "/access/users/owner@pve/token/more", "").await;
    assert!(own.line.starts_with("403"), "a token makes no tokens: {}", own.line);
    // Not even one that may modify its user.
    let txn = stead_conf::Txn::new("root@pam").put(
        stead_model::paths::USER_CFG,
        format!(
            "{USERS}token:owner@pve!ci:0:0:builds:\ngroup:own:owner@pve,auditor@pve::\nacl:1:/access/groups:owner@pve:PVEUserAdmin:\n"
        )
        .into_bytes(),
    );
    node.ops.conf.transact(txn).await.unwrap();
    for (method, form) in [("POST", ""), ("PUT", "privsep=0"), ("PUT", "regenerate=1"), ("DELETE", "")] {
        let own = node.ask(&first, method, "/access/users/owner@pve/token/more", form).await;
        assert!(own.line.starts_with("403"), "{method}: {}", own.line);
    }
    let others = node.ask(&first, "POST", "/access/users/auditor@pve/token/more", "").await;
    assert_eq!(others.line, "200 OK", "a user whom it may modify is another matter");

    let changed = node.ask(&owner, "PUT", path, "privsep=1&regenerate=1").await.data();
    assert_eq!((&changed["privsep"], &changed["comment"]), (&json!(1), &json!("builds")));
    assert!(
        node.ask(&first, "GET", "/version", "").await.line.starts_with("401"),
        "the old secret has ended"
    );
    let second = token(&changed["value"]);
    let permissions = node.ask(&second, "GET", "/access/permissions?path=/vms/100", "").await.data();
    assert_eq!(permissions["/vms/100"], json!({}), "it has no entries of its own");
    let list = node.ask(&owner, "GET", "/access/users/owner@pve/token", "").await.data();
    assert_eq!(list[0]["tokenid"], "ci");
    let roots = node.ask(&owner, "GET", "/access/users/root@pam/token", "").await;
    assert!(roots.line.starts_with("403"), "{}", roots.line);
    assert_eq!(node.ask(&owner, "DELETE", path, "").await.data(), Value::Null);
    assert!(node.ask(&second, "GET", "/version", "").await.line.starts_with("401"));
    let gone = node.ask(&owner, "GET", path, "").await;
    assert_eq!(gone.line, "500 no such token 'ci' for user 'owner@pve'");
    let secret = node.ops.conf.recent(50).iter().any(|c| c.path.starts_with("priv/"));
    assert!(!secret, "secrets are kept out of the history");
}

#[tokio::test]
async fn storages_pools_and_options_are_read_and_changed() {
    let node = Node::start(&format!("{USERS}pool:dev:a pool:100:local:\n"), &ALL).await;
    let root = node.sign_in("root@pam").await;
    let form = "storage=more&type=dir&path=/x&content=images&shared=true";
    assert_eq!(
        node.ask(&root, "POST", "/storage", form).await.data(),
        json!({"storage": "more", "type": "dir"})
    );
    let twice = node.ask(&root, "POST", "/storage", form).await;
    assert!(twice.line.contains("already defined") || twice.line.contains("already"), "{}", twice.line);
    let all = node.ask(&root, "GET", "/nodes/n1/storage?content=images", "").await.data();
    assert_eq!(all.as_array().unwrap().len(), 2);
    assert_eq!(all[1]["active"], 1);
    let fixed = node.ask(&root, "PUT", "/storage/more", "path=/y").await;
    assert!(fixed.body["errors"]["path"].is_string(), "what a storage is can't be changed: {}", fixed.body);
    node.ask(&root, "PUT", "/storage/more", "disable=1").await.data();
    let gone = node.ask(&root, "GET", "/nodes/n1/storage/more/content", "").await;
    assert_eq!(gone.line, "500 storage 'more' is disabled");
    assert_eq!(node.ask(&root, "DELETE", "/storage/more", "").await.data(), Value::Null);

    let disk = "filename=vm-100-disk-7.raw&size=4M&vmid=100";
    let volume = node.ask(&root, "POST", "/nodes/n1/storage/local/content", disk).await.data();
    let path = format!("/nodes/n1/storage/local/content/{}", volume.as_str().unwrap());
    assert_eq!(node.ask(&root, "GET", &path, "").await.data()["size"], 4 << 20);
    let upid = node.ask(&root, "DELETE", &path, "").await.data();
    assert_eq!(node.done(&upid).await, "OK");

    let pool = node.ask(&root, "GET", "/pools?poolid=dev", "").await.data();
    assert_eq!(pool[0]["members"][0]["storage"], "local");
    assert_eq!(node.ask(&root, "PUT", "/cluster/options", "description=hello").await.data(), Value::Null);
    assert_eq!(node.ask(&root, "GET", "/cluster/options", "").await.data()["description"], "hello");
    let log = node.ask(&root, "GET", "/cluster/log?max=1", "").await.data();
    assert_eq!(log[0]["msg"], "options of the cluster");
}

#[tokio::test]
async fn the_history_says_who_changed_what() {
    let node = Node::start(USERS, &ALL).await;
    let root = node.sign_in("root@pam").await;
    with_a_vm(&node, &root).await;
    node.ask(&root, "PUT", "/nodes/n1/qemu/100/config", "cores=2").await.data();
    let file = "nodes/n1/qemu-server/100.conf";
    let path = |p: &str| format!("/cluster/history?path={p}");
    let auditor = node.sign_in("auditor@pve").await;
    let of_vm = node.ask(&auditor, "GET", &path(file), "").await.data();
    let changes = of_vm.as_array().unwrap();
    assert!(changes.len() >= 2, "{of_vm}");
    let (last, first) = (&changes[0], changes.last().unwrap());
    assert!(last["revision"].as_u64() > first["revision"].as_u64(), "the latest comes first: {of_vm}");
    assert_eq!(
        (&last["author"], &last["path"], &last["kind"]),
        (&json!("root@pam"), &json!(file), &json!("put"))
    );
    assert!(last["time"].as_u64().unwrap() > 1_600_000_000, "seconds since 1970: {last}");
    let folder = node.ask(&root, "GET", &path("/nodes/n1/"), "").await.data();
    assert!(folder.as_array().unwrap().contains(last), "{folder}");
    let part_of_a_name = node.ask(&root, "GET", &path("nodes/n"), "").await.data();
    assert_eq!(part_of_a_name, json!([]));
    let one = node.ask(&root, "GET", "/cluster/history?limit=1", "").await.data();
    assert_eq!(one.as_array().unwrap().len(), 1);
    let all = node.ask(&root, "GET", "/cluster/history?limit=10000", "").await.data();
    assert!(!all.to_string().contains("priv/"), "secrets have no history: {all}");
    let owner = node.sign_in("owner@pve").await;
    assert!(node.ask(&owner, "GET", "/cluster/history", "").await.line.starts_with("403 "));
    // All secrets are in a backup: not even root gets it from afar.
    let afar = node.ask(&root, "GET", "/cluster/history/backup", "").await.line;
    assert!(afar.starts_with("403 only on the node itself"), "{afar}");
    let back = "/cluster/history/rollback";
    let to = |more: &str| format!("path={file}&revision={}{more}", first["revision"]);
    assert!(node.ask(&auditor, "POST", back, &to("")).await.line.starts_with("403 "));
    let unsaid = node.ask(&root, "POST", back, &format!("path={file}")).await;
    assert!(unsaid.body["errors"]["revision"].is_string(), "{unsaid:?}");
    let stale = node.ask(&root, "POST", back, &to("&over=1")).await.line;
    assert!(stale.contains("changed by somebody else meanwhile"), "{stale}");
    let now = node.ask(&root, "GET", &format!("/cluster/history/file?path={file}"), "").await.data();
    node.ask(&root, "POST", back, &to(&format!("&over={}", now["now"]))).await.data();
    let cores = node.ask(&root, "GET", "/nodes/n1/qemu/100/config", "").await.data()["cores"].clone();
    assert_ne!(cores, json!(2), "as it was made");
}

#[tokio::test]
async fn who_may_let_nodes_in_gets_a_token() {
    let users = format!("{USERS}user:admin@pve:1:0:::::\nacl:1:/:admin@pve:Administrator:\n");
    let node = Node::start(&users, &["root@pam", "auditor@pve", "admin@pve"]).await;
    let (root, auditor) = (node.sign_in("root@pam").await, node.sign_in("auditor@pve").await);
    let join = "/cluster/config/join";
    let admin = node.sign_in("admin@pve").await;
    let made = node.ask(&root, "POST", "/access/users/root@pam/token/ci", "privsep=0").await.data();
    let token = Who::Token(format!("root@pam!ci={}", made["value"].as_str().unwrap()));
    for who in [&admin, &token] {
        assert_eq!(node.ask(who, "PUT", "/cluster/options", "mac_prefix=aa:bb:cc").await.line, "200 OK");
        for (method, path) in [
            ("POST", "/cluster/config"),
            ("POST", join),
            ("POST", "/cluster/config/join-token"),
            ("POST", "/cluster/config/nodes/n2"),
            ("PUT", "/cluster/config/nodes/n2"),
            ("DELETE", "/cluster/config/nodes/n2"),
        ] {
            let refused = node.ask(who, method, path, "").await;
            assert_eq!(refused.line, "403 user != root@pam", "{method} {path}");
        }
    }
    let plain = node.ask(&auditor, "GET", &format!("{join}?node=n1"), "").await.data();
    assert_eq!((&plain["information"], &plain["token"]), (&json!("for auditor@pve"), &Value::Null));
    let refused = node.ask(&auditor, "GET", &format!("{join}?with-token=1"), "").await;
    assert!(refused.line.starts_with("400 "), "to look changes nothing: {}", refused.line);
    let make = "/cluster/config/join-token";
    assert!(node.ask(&auditor, "POST", make, "").await.line.starts_with("403 "));
    let Who::Ticket(ticket, _) = &root else { panic!("a ticket") };
    let unsure = node.ask(&Who::Ticket(ticket.clone(), "none".into()), "POST", make, "").await;
    assert!(unsure.line.contains("invalid csrf token"), "{}", unsure.line);
    assert_eq!(node.ask(&root, "POST", make, "").await.data()["token"], "secret");
    let other = node.ask(&root, "GET", &format!("{join}?node=n2"), "").await;
    assert_eq!(other.data()["preferred_node"], "n2");
}

#[tokio::test]
async fn a_member_gets_further_links_and_loses_them() {
    let node = Node::start(USERS, &ALL).await;
    let (root, auditor) = (node.sign_in("root@pam").await, node.sign_in("auditor@pve").await);
    let path = "/cluster/config/nodes/n1";
    let set = async |body: &str| node.ask(&root, "PUT", path, body).await;
    let own = node.ops.me.addr.ip();
    for (body, parameter, why) in [
        ("link1=nowhere".to_owned(), "link1", "no link"),
        ("link1=127.1.0.11,priority=3".to_owned(), "link1", "order of their numbers"),
        ("link8=127.1.0.11".to_owned(), "link8", "link0 to link7"),
        ("link0=127.1.0.11".to_owned(), "link0", "--listen"),
        (format!("link1={own}"), "link1", "same address"),
        ("delete=link1".to_owned(), "delete", "no link 1"),
        ("delete=net0".to_owned(), "delete", "no link"),
    ] {
        let refused = set(&body).await;
        let said = refused.body["errors"][parameter].as_str().unwrap_or_default();
        assert!(said.contains(why), "{body}: {} {}", refused.line, refused.body);
    }
    assert_eq!(set(&format!("link0={own}&link1=127.1.0.11&link7=127.7.0.11")).await.line, "200 OK");
    let listed = node.ask(&auditor, "GET", "/cluster/config/nodes", "").await.data();
    let rings = |n: &Value| [0, 1, 2, 7].map(|k| n[format!("ring{k}_addr")].as_str().map(str::to_owned));
    let shown = [Some(own.to_string()), Some("127.1.0.11".into()), None, Some("127.7.0.11".into())];
    assert_eq!(rings(&listed[0]), shown);
    let links = node.ask(&auditor, "GET", "/cluster/config/links", "").await.data();
    let port = node.ops.me.addr.port();
    assert_eq!(links[1], json!({"node": "n1", "link": 1, "address": format!("127.1.0.11:{port}")}));
    assert_eq!(set("delete=link1&link7=127.7.0.12").await.line, "200 OK");
    let links = node.ask(&auditor, "GET", "/cluster/config/links", "").await.data();
    let addresses: Vec<_> = links.as_array().unwrap().iter().map(|l| l["address"].clone()).collect();
    assert_eq!(addresses[1..], [json!(format!("127.7.0.12:{port}"))]);
}

#[tokio::test]
async fn a_member_prepares_for_one_node_and_lets_in_no_other() {
    use stead_transport::join::{JOIN_PROTOCOL, JoinRefusal, JoinRequest};
    let node = Node::start(USERS, &ALL).await;
    let (root, auditor) = (node.sign_in("root@pam").await, node.sign_in("auditor@pve").await);
    let path = "/cluster/config/nodes/n2";
    assert!(node.ask(&auditor, "POST", path, "").await.line.starts_with("403 "));
    let version = node.ask(&root, "POST", path, "apiversion=2").await;
    assert!(version.body["errors"]["apiversion"].as_str().unwrap().contains("version"), "{}", version.body);
    let taken = node.ask(&root, "POST", "/cluster/config/nodes/n1", "").await;
    assert!(taken.line.starts_with("500 a node named 'n1' is in the cluster already"), "{}", taken.line);

    let made =
        node.ask(&root, "POST", path, "new_node_ip=127.0.0.9&apiversion=1&link1=127.1.0.9").await.data();
    assert_eq!(made["warnings"], json!([]));
    let information: stead_transport::JoinInfo = made["information"].as_str().unwrap().parse().unwrap();
    assert_eq!(information.token.as_deref(), made["token"].as_str());
    assert_eq!(made["command"], format!("stead cluster join {information} --link 1=127.1.0.9"));

    let token = information.token.unwrap();
    let ask = async |name: &str, ip: &str| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
        let request = json!({
            "protocol": JOIN_PROTOCOL, "name": name, "uuid": "33333333-3333-4333-8333-333333333333",
            "csr": "no signing request", "addr": format!("{ip}:8006"), "version": "0.0.0",
            "feature_level": stead_conf::SUPPORTED_LEVEL, "wall_clock_ms": u64::try_from(now).unwrap(),
        });
        let request: JoinRequest = serde_json::from_value(request).unwrap();
        node.ops.let_in(&request, Some(&token)).await.unwrap_err()
    };
    for (name, ip) in [("n3", "127.0.0.9"), ("n2", "127.0.0.8")] {
        let refused = ask(name, ip).await;
        assert!(matches!(refused, JoinRefusal::TokenForOther { .. }), "{name} {ip}: {refused}");
    }
    let further = ask("n2", "127.0.0.9").await;
    assert!(
        matches!(further, JoinRefusal::Request { .. }),
        "its token is good, its request is not: {further}"
    );
}

#[tokio::test]
async fn a_node_leaves_when_it_owns_nothing_and_is_forgotten_after() {
    use stead_ops::leave::{LeaveAnswer, LeaveRequest};
    let node = Node::start(USERS, &ALL).await;
    let ops = &node.ops;
    let alone = ops.remove_node(&stead_ops::Actor::system(), &ops.me.name).await.unwrap_err().to_string();
    assert_eq!(alone, "this node is the only one of its cluster: there is nothing to leave");

    let mut second = ops.node_record(&"n1".parse().unwrap()).unwrap().value;
    second.name = "n2".parse().unwrap();
    second.raft_id = stead_model::RaftId(2);
    let own = json!({"kind": "qemu", "owner": "n2", "epoch": 1, "armed": false, "running": false});
    let txn = stead_conf::Txn::new("root@pam")
        .put(stead_model::paths::node(&second.name), serde_json::to_vec(&second).unwrap())
        .put(stead_model::paths::ownership("200".parse().unwrap()), own.to_string().into_bytes());
    ops.conf.transact(txn).await.unwrap();

    let rq = LeaveRequest { by: "admin@pve".into() };
    let owns = ops.let_go(&second.name, &rq).await.unwrap_err().to_string();
    assert_eq!(owns, "node 'n2' still owns guests: 200; move or remove them first");
    assert!(ops.forget_left(&second.name, &rq).await.is_err());
    let path = stead_model::paths::ownership("200".parse().unwrap());
    let gone =
        stead_conf::Txn { ops: vec![stead_conf::Op::Delete(path)], ..stead_conf::Txn::new("root@pam") };
    ops.conf.transact(gone).await.unwrap();
    for _ in 0..2 {
        assert_eq!(ops.let_go(&second.name, &rq).await.unwrap(), LeaveAnswer::Done, "it can be asked again");
    }
    let in_raft = ops.forget_left(&ops.me.name, &rq).await.unwrap_err().to_string();
    assert_eq!(in_raft, "node 'n1' is in Raft still: it has not left");
    for _ in 0..2 {
        assert_eq!(ops.forget_left(&second.name, &rq).await.unwrap(), LeaveAnswer::Done);
    }
    assert_eq!(ops.node_records().len(), 1);
    let last = ops.history(Some(&stead_model::paths::node(&second.name)), 9).remove(0);
    assert_eq!(last.author, "admin@pve");
    assert!(ops.guest_locks.try_lock("100".parse().unwrap()).is_some(), "this node goes on as before");
}

#[tokio::test]
async fn a_report_that_was_overtaken_on_its_way_is_no_news() {
    use stead_ops::status::NodeReport;
    let node = Node::start(USERS, &ALL).await;
    let own = node.ops.status.node(&node.ops.me.name).unwrap();
    let newer = NodeReport { node: "n2".parse().unwrap(), seq: 7, lease: true, listens: true, ..own };
    let older = NodeReport { seq: 6, lease: false, listens: false, ..newer.clone() };
    let mut live = node.ops.events.follow(None).1;
    node.ops.take_report(&newer);
    assert_eq!(live.try_recv().unwrap().data, json!({"lease": 1}));
    node.ops.take_report(&older);
    assert!(live.try_recv().is_err(), "an event of the past");
    assert_eq!(node.ops.status.listening(), std::slice::from_ref(&newer.node));
    assert_eq!(node.ops.listeners(&node.ops.me.name), std::slice::from_ref(&newer.node));
    assert!(node.ops.listeners(&newer.node).is_empty(), "a node needs no lines of its own");
    node.ops.take_report(&NodeReport { started: newer.started + 1, seq: 1, ..older });
    assert_eq!(live.try_recv().unwrap().data, json!({"lease": 0}), "a new start of its daemon counts anew");
}
