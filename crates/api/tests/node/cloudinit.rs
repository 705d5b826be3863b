//! Cloud-init over the API: its options, the drive, what is shown of it, and to whom.

use crate::bed::{Node, Who};
use serde_json::{Value, json};

const USERS: &str = "user:looker@pve:1:0:::::\nuser:teller@pve:1:0:::::\nuser:netter@pve:1:0:::::\n\
    acl:1:/vms:looker@pve:PVEAuditor:\nacl:1:/vms:teller@pve:Tell:\nacl:1:/vms:netter@pve:Net:\n\
    role:Tell:VM.Config.Cloudinit:\nrole:Net:VM.Config.Network:\n";
const ALL: [&str; 4] = ["root@pam", "looker@pve", "teller@pve", "netter@pve"];
const VM: &str = "/nodes/n1/qemu/100";

async fn start() -> (Node, Who) {
    let node = Node::start(USERS, &ALL).await;
    let root = node.sign_in("root@pam").await;
    let form = "vmid=100&memory=64&name=web&net0=virtio%3DBC:24:11:00:00:01&ide2=local:cloudinit&ciuser=zoe&\
                cipassword=secret%20word&sshkeys=ssh-ed25519%2520AAAA%2520me%250A&nameserver=1.1.1.1&\
                searchdomain=example.org&ipconfig0=ip%3D10.0.0.5/24,gw%3D10.0.0.1";
    let upid = node.ask(&root, "POST", "/nodes/n1/qemu", form).await.data();
    assert_eq!(node.done(&upid).await, "OK");
    (node, root)
}

async fn dump(node: &Node, who: &Who, which: &str) -> String {
    let answer = node.ask(who, "GET", &format!("{VM}/cloudinit/dump?type={which}"), "").await;
    answer.data().as_str().unwrap_or_else(|| panic!("{}", answer.line)).to_owned()
}

#[tokio::test]
async fn a_drive_is_made_shown_and_written() {
    let (node, root) = start().await;
    let looker = node.sign_in("looker@pve").await;
    let config = node.ask(&looker, "GET", &format!("{VM}/config"), "").await.data();
    assert_eq!(config["ide2"], "local:100/vm-100-cloudinit.raw,media=cdrom,size=4M");
    assert_eq!((&config["cipassword"], &config["ciuser"]), (&"**********".into(), &"zoe".into()));
    let told = async || node.ask(&looker, "GET", &format!("{VM}/cloudinit"), "").await.data();
    let of = |told: &Value, key: &str| {
        told.as_array().unwrap().iter().find(|row| row["key"] == key).cloned().unwrap_or_default()
    };
    assert_eq!(of(&told().await, "ciuser"), json!({ "key": "ciuser", "pending": "zoe" }));
    assert_eq!(node.ask(&root, "PUT", &format!("{VM}/cloudinit"), "").await.data(), Value::Null);
    assert_eq!(of(&told().await, "ciuser"), json!({ "key": "ciuser", "value": "zoe" }));
    assert_eq!(of(&told().await, "cipassword"), json!({ "key": "cipassword", "value": "**********" }));
    let form = "ciuser=ada&ciupgrade=0&delete=searchdomain";
    assert_eq!(node.ask(&root, "PUT", &format!("{VM}/config"), form).await.data(), Value::Null);
    let now = told().await;
    assert_eq!(of(&now, "ciuser"), json!({ "key": "ciuser", "value": "zoe", "pending": "ada" }));
    assert_eq!(of(&now, "ciupgrade"), json!({ "key": "ciupgrade", "pending": "0" }));
    assert_eq!(
        of(&now, "searchdomain"),
        json!({ "key": "searchdomain", "value": "example.org", "delete": 1 })
    );

    let user = dump(&node, &looker, "user").await;
    for part in [
        "#cloud-config\n",
        "user: \"ada\"\n",
        "password: \"**********\"\n",
        "- \"ssh-ed25519 AAAA me\"\n",
        "package_upgrade: false\n",
    ] {
        assert!(user.contains(part), "{part} in {user}");
    }
    assert!(!user.contains("$6$"), "{user}");
    assert!(dump(&node, &looker, "network").await.contains("address: \"10.0.0.5\"\n"));
    assert!(dump(&node, &looker, "meta").await.starts_with("instance-id: \""));
    let wrong = node.ask(&looker, "GET", &format!("{VM}/cloudinit/dump?type=vendor"), "").await;
    assert_eq!(wrong.line, "400 Parameter verification failed.");
    assert!(wrong.body["errors"]["type"].is_string(), "{}", wrong.body);
}

#[tokio::test]
async fn what_cannot_be_is_refused_by_its_name() {
    let (node, root) = start().await;
    for (form, key, words) in [
        ("citype=opennebula", "citype", "its drive is a shell script"),
        ("ipconfig0=ip%3D10.0.0.5", "ipconfig0", "address with its prefix"),
        ("cicustom=user%3Dlocal:iso/a.iso", "cicustom", "is no snippet"),
        ("cipassword=**********", "cipassword", "stands for the password that is there"),
        ("sshkeys=ssh-rsa%20AAAA", "sshkeys", "encoded as in a URL"),
        ("sata0=local:cloudinit", "sata0", "one cloud-init drive at most"),
        ("virtio3=local:cloudinit", "virtio3", "cannot be attached to 'virtio'"),
        ("sata0=nowhere:cloudinit", "sata0", "one cloud-init drive at most"),
    ] {
        let answer = node.ask(&root, "PUT", &format!("{VM}/config"), form).await;
        let told = answer.body["errors"][key].as_str().unwrap_or_else(|| panic!("{form}: {}", answer.body));
        assert!(told.contains(words), "{form}: {told}");
    }
    assert_eq!(node.ask(&root, "PUT", &format!("{VM}/config"), "delete=ide2").await.data(), Value::Null);
    let none = node.ask(&root, "PUT", &format!("{VM}/cloudinit"), "").await;
    assert!(none.line.starts_with("500 VM 100 has no cloud-init drive"), "{}", none.line);
    let content = node.ask(&root, "GET", "/nodes/n1/storage/local/content?vmid=100", "").await.data();
    assert_eq!(content, json!([]), "its volume is gone with it");
}

#[tokio::test]
async fn privileges_are_those_of_what_is_told() {
    let (node, _) = start().await;
    for (who, method, path, form, may) in [
        ("looker@pve", "GET", "cloudinit", "", true),
        ("looker@pve", "PUT", "cloudinit", "", false),
        ("looker@pve", "PUT", "config", "ciuser=a", false),
        ("teller@pve", "PUT", "cloudinit", "", true),
        ("teller@pve", "PUT", "config", "ciuser=a&cipassword=b&ipconfig0=ip%3Ddhcp&nameserver=1.1.1.1", true),
        ("teller@pve", "PUT", "config", "cicustom=user%3Dlocal:snippets/a.yaml", false),
        ("teller@pve", "PUT", "config", "delete=ide2", false),
        ("teller@pve", "GET", "cloudinit", "", false),
        ("netter@pve", "PUT", "config", "ipconfig0=ip%3Ddhcp&searchdomain=lan", true),
        ("netter@pve", "PUT", "config", "cipassword=b", false),
        ("netter@pve", "PUT", "cloudinit", "", false),
    ] {
        let signed = node.sign_in(who).await;
        let answer = node.ask(&signed, method, &format!("{VM}/{path}"), form).await;
        let expected = if may { answer.line == "200 OK" } else { answer.line.starts_with("403 ") };
        assert!(expected, "{who} {method} {path} {form}: {}", answer.line);
    }
}
