//! Scenes of a cluster: joining, links, the loss of a majority, HA.

use super::Fake;
use serde_json::{Value, json};

#[tokio::test]
async fn joining_reads_the_copied_string() {
    let fake = Fake::new(&[("POST /cluster/config/join", Value::Null)]).await;
    let token = format!("0123456789abcdef.{}", "11".repeat(32));
    let info = stead_transport::JoinInfo {
        token: Some(token.clone()),
        ..stead_transport::JoinInfo::by_hand(
            "192.0.2.1:8006".parse().unwrap(),
            stead_transport::Fingerprint([0xab; 32]),
        )
    };
    let info = info.to_string();
    let ended = fake.run(&["stead", "cluster", "join", &info, "--link", "1=10.1.0.9"]).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let print = vec!["AB"; 32].join("%3A");
    assert_eq!(
        fake.changes(),
        [format!(
            "POST /cluster/config/join link1=10.1.0.9&hostname={}&fingerprint={print}&password={token}",
            info.replace('=', "%3D")
        )]
    );
}

#[tokio::test]
async fn what_joining_needs_is_named() {
    let fake = Fake::new(&[("POST /cluster/config/join", Value::Null)]).await;
    let member = "192.0.2.1:8006".parse().unwrap();
    let info =
        stead_transport::JoinInfo::by_hand(member, stead_transport::Fingerprint([0xab; 32])).to_string();
    let join = async |more: &[&str]| {
        let ended = fake.run(&[&["stead", "cluster", "join", &info], more].concat()).await;
        assert_eq!(ended.code, 2, "{ended:?}");
        ended.err
    };
    let cut = join(&["--join-token", "0123456789abcde.11"]).await;
    assert!(cut.contains("this is not a join token"), "{cut}");
    let idle = join(&["--password", "secret"]).await;
    assert!(idle.contains("sign in at --server") && idle.contains("STEAD_CLUSTER_PASSWORD"), "{idle}");
    assert!(fake.changes().is_empty(), "nothing was sent that could be taken for a password");
}

#[tokio::test]
async fn links_are_shown_and_changed() {
    let links = json!([
        {"node": "n1", "link": 0, "address": "10.0.0.1:8006", "answers": 1, "since": 1_790_000_000},
        {"node": "n1", "link": 1, "address": "10.1.0.1:8006", "answers": 0, "since": 1_790_000_000},
        {"node": "n2", "link": 0, "address": "10.0.0.2:8006"},
    ]);
    let fake = Fake::new(&[
        ("GET /cluster/config/links", links),
        ("PUT /cluster/config/nodes/n1", Value::Null),
        ("POST /cluster/config", Value::Null),
    ])
    .await;
    let shown = fake.run(&["stead", "cluster", "links"]).await;
    let states: Vec<&str> = shown.out.lines().skip(1).filter_map(|l| l.split_whitespace().nth(3)).collect();
    assert_eq!(states, ["answers", "silent", "unknown"], "{shown:?}");
    let set = ["stead", "cluster", "set-links", "n1", "1=10.1.0.1", "2=fd00::1", "--delete", "3"];
    assert_eq!(fake.run(&set).await.code, 0);
    assert_eq!(
        fake.run(&["pvecm", "create", "prod", "--link0", "10.0.0.1", "--link1", "10.1.0.1"]).await.code,
        0
    );
    assert_eq!(
        fake.changes(),
        [
            "PUT /cluster/config/nodes/n1 link1=10.1.0.1&link2=fd00%3A%3A1&delete=link3",
            "POST /cluster/config link0=10.0.0.1&link1=10.1.0.1&clustername=prod",
        ]
    );
    let nothing = fake.run(&["stead", "cluster", "set-links", "n1"]).await;
    let wrong = fake.run(&["stead", "cluster", "set-links", "n1", "10.1.0.1"]).await;
    assert!(nothing.code == 2 && wrong.code == 2, "{nothing:?} {wrong:?}");
    assert!(wrong.err.contains("expected N=IP"), "{wrong:?}");
}

#[tokio::test]
async fn what_the_verbs_of_the_cluster_storages_and_ha_send() {
    let fake = Fake::new(&[
        ("PUT /cluster/options", Value::Null),
        ("PUT /storage/local", Value::Null),
        ("POST /cluster/ha/resources/vm%3A100/migrate", json!({})),
        ("POST /cluster/ha/resources/vm%3A100/relocate", json!({})),
        ("POST /nodes/pve1/qemu/100/config", Value::Null),
        ("POST /cluster/config/nodes/pve2/confirm-off", Value::Null),
        ("POST /nodes/pve2/startall", Value::Null),
        ("POST /nodes/pve2/stopall", Value::Null),
        ("POST /nodes/pve2/suspendall", Value::Null),
        ("POST /nodes/pve2/migrateall", Value::Null),
    ])
    .await;
    let asked = fake.run(&["stead", "node", "confirm-off", "pve2"]).await;
    assert!(asked.code != 0 && asked.err.contains("run twice") && fake.changes().is_empty(), "{asked:?}");
    for words in [
        &["stead", "cluster", "options", "keyboard=de", "--delete", "language"][..],
        &["stead", "storage", "set", "local", "content=iso,images"],
        &["stead", "ha", "migrate", "100", "pve2"],
        &["stead", "ha", "relocate", "vm:100", "pve2"],
        &["qm", "unlock", "100"],
        &["stead", "node", "confirm-off", "pve2", "--target", "pve1", "--yes"],
        &["stead", "node", "start-all", "pve2", "--force", "--vms", "100,101"],
        &["stead", "node", "stop-all", "pve2", "--timeout", "60", "--no-force", "--workers", "2"],
        &["stead", "node", "suspend-all", "pve2"],
        &["stead", "node", "migrate-all", "pve2", "pve1"],
    ] {
        let ended = fake.run(words).await;
        assert_eq!(ended.code, 0, "{words:?}: {ended:?}");
    }
    assert_eq!(
        fake.changes(),
        [
            "PUT /cluster/options keyboard=de&delete=language",
            "PUT /storage/local content=iso%2Cimages",
            "POST /cluster/ha/resources/vm%3A100/migrate node=pve2",
            "POST /cluster/ha/resources/vm%3A100/relocate node=pve2",
            "POST /nodes/pve1/qemu/100/config delete=lock&skiplock=1",
            "POST /cluster/config/nodes/pve2/confirm-off target=pve1",
            "POST /nodes/pve2/startall vms=100%2C101&force=1",
            "POST /nodes/pve2/stopall max-workers=2&timeout=60&force-stop=0",
            "POST /nodes/pve2/suspendall",
            "POST /nodes/pve2/migrateall target=pve1",
        ]
    );
}

#[tokio::test]
async fn the_word_that_gives_up_a_majority_names_every_other_node() {
    let mut present = json!({"epoch": "1", "quorate": 0, "node": "pve1", "others": ["pve2", "pve3"]});
    present["ends_unknown"] = json!("the fence process is silent");
    let fake = Fake::new(&[("GET /cluster/config/expected", present.clone())]).await;
    let unknown = fake.run(&["stead", "cluster", "expected", "1", "--off", "pve2", "--off", "pve3"]).await;
    assert!(
        unknown.code != 0 && unknown.err.contains("would end: the fence process is silent"),
        "{unknown:?}"
    );
    assert!(fake.changes().is_empty());
    present["ends_unknown"].take();
    present["ends"] = json!([100]);
    let change =
        json!({"path": "storage.cfg", "user": "root@pam", "note": "add nfs", "at": 1_700_000_000_000_u64});
    let aside = json!({"node": "pve2", "epoch": "1", "at": 1, "place": "conf.epoch-1", "changes": [change], "more": 3});
    let fake = Fake::new(&[
        ("GET /cluster/config/expected", present),
        ("POST /cluster/config/expected", Value::Null),
        ("POST /cluster/config/rejoin", Value::Null),
        ("GET /cluster/config/aside", json!([aside])),
        ("DELETE /cluster/config/aside/pve2", Value::Null),
    ])
    .await;
    for words in [&["stead", "cluster", "expected", "1", "--off", "pve2"][..], &["pvecm", "expected", "1"]] {
        let asked = fake.run(words).await;
        assert!(asked.code != 0 && asked.err.contains("is off") && fake.changes().is_empty(), "{asked:?}");
        assert!(asked.err.contains("give 'stead cluster expected 1 --off pve2 --off pve3'"), "{asked:?}");
        assert!(asked.out.contains("These guests end here, and HA starts its own anew: 100"), "{asked:?}");
    }
    let asides = fake.run(&["stead", "cluster", "asides"]).await;
    for said in ["pve2", "root@pam", "storage.cfg", "add nfs", "3 more of node 'pve2' are in 'conf.epoch-1'"]
    {
        assert!(asides.code == 0 && asides.out.contains(said), "{said}: {asides:?}");
    }
    for words in [
        &["stead", "cluster", "expected", "1", "--off", "pve2", "--off", "pve3"][..],
        &["stead", "cluster", "expected", "1", "--yes", "--off", "pve2", "--off", "pve3"],
        &["stead", "cluster", "rejoin", "--yes", "--node", "pve2"],
        &["stead", "cluster", "forget-aside", "pve2"],
    ] {
        let ended = fake.run(words).await;
        assert_eq!(ended.code, 0, "{words:?}: {ended:?}");
    }
    let said = "POST /cluster/config/expected votes=1&off=pve2&off=pve3";
    let rest = ["POST /cluster/config/rejoin node=pve2", "DELETE /cluster/config/aside/pve2"];
    assert_eq!(fake.changes(), [[said, said], rest].concat());
}

#[tokio::test]
async fn the_status_of_ha_and_of_the_cluster_end_with_the_outlook() {
    let line = "this cluster survives the loss of any one node: yes";
    let quorum = json!({"type": "quorum", "id": "quorum", "node": "pve1", "status": "OK", "survives": 1, "outlook": line});
    let cluster = json!({"type": "cluster", "id": "cluster", "name": "prod", "quorate": 1, "version": 7, "outlook": line});
    let fake = Fake::new(&[
        ("GET /cluster/ha/status/current", json!([quorum])),
        ("GET /cluster/status", json!([cluster])),
        ("GET /cluster/ha/what-if", json!({"any-one": {"text": line}})),
    ])
    .await;
    let before = fake.run(&["stead", "cluster", "status"]).await;
    assert!(before.code == 0 && !before.out.contains("survives"), "it is not known yet: {before:?}");
    for words in [
        &["stead", "ha", "status"][..],
        &["stead", "cluster", "status"],
        &["stead", "ha", "what-if", "--node", "pve1", "--node", "pve2"],
    ] {
        let ended = fake.run(words).await;
        assert_eq!((ended.code, ended.out.lines().last()), (0, Some(line)), "{ended:?}");
    }
    let json = fake.run(&["stead", "ha", "status", "-o", "json"]).await;
    let shown: Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(shown[0]["outlook"], line, "{json:?}");
}

#[tokio::test]
async fn names_for_what_nodes_have_are_made_and_held_against_them() {
    let keys = json!([{
        "id": "key", "type": "usb", "map": ["id=046d:c52b,node=n1", "id=046d:c52b,node=n2,path=1-2"],
        "error": [{"severity": "error", "message": "no USB device is plugged in at 1-2"}], "digest": "x",
    }]);
    let fake = Fake::new(&[
        ("GET /cluster/mapping/usb", keys.clone()),
        ("GET /cluster/mapping/usb/key", keys[0].clone()),
        ("POST /cluster/mapping/pci", Value::Null),
        ("PUT /cluster/mapping/usb/key", Value::Null),
        ("DELETE /cluster/mapping/dir/iso", Value::Null),
        (
            "GET /nodes/n1/hardware/usb",
            json!([{"busnum": 1, "usbpath": "2", "vendid": "046d", "prodid": "c52b"}]),
        ),
    ])
    .await;
    let shown = fake.run(&["stead", "mapping", "list", "usb", "--check", "n2"]).await;
    assert!(fake.calls().contains(&"GET /cluster/mapping/usb?check-node=n2".to_owned()));
    assert!(shown.out.contains("node=n2,path=1-2") && shown.out.contains("no USB device is"), "{shown:?}");
    let devices = fake.run(&["stead", "node", "devices", "n1", "usb"]).await;
    assert!(devices.out.contains("046d") && devices.out.contains("c52b"), "{devices:?}");
    let map = "node=n1,id=10de:2204,path=0000:01:00";
    for words in [
        &["stead", "mapping", "add", "pci", "gpu", "--map", map, "--mdev", "1"][..],
        // The API wants all of a USB mapping each time.
        &["stead", "mapping", "set", "usb", "key", "--description", "mine"],
        &["stead", "mapping", "remove", "dir", "iso"],
    ] {
        let ended = fake.run(words).await;
        assert_eq!(ended.code, 0, "{words:?}: {ended:?}");
    }
    assert_eq!(
        fake.changes(),
        [
            "POST /cluster/mapping/pci map=node%3Dn1%2Cid%3D10de%3A2204%2Cpath%3D0000%3A01%3A00&mdev=1&id=gpu",
            "PUT /cluster/mapping/usb/key description=mine&map=id%3D046d%3Ac52b%2Cnode%3Dn1&map=id%3D046d%3Ac52b%2Cnode%3Dn2%2Cpath%3D1-2",
            "DELETE /cluster/mapping/dir/iso",
        ]
    );
}

#[tokio::test]
async fn certificates_are_made_anew_and_a_node_that_could_not_is_a_failure() {
    let good = json!({"node": "pve1", "renewed": 1, "notafter": 1_900_000_000, "fingerprint": "AB:CD"});
    let fake = Fake::new(&[("POST /cluster/config/certificates", json!([good]))]).await;
    let ended = fake.run(&["stead", "cluster", "renew-certificates"]).await;
    assert!(ended.code == 0 && ended.out.contains("AB:CD"), "{ended:?}");
    let ended = fake.run(&["pvecm", "updatecerts", "--force"]).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let asked = ["POST /cluster/config/certificates", "POST /cluster/config/certificates node=pve1&force=1"];
    assert_eq!(fake.changes(), asked);
    let bad = json!({"node": "pve2", "renewed": 0, "error": "the nodes' clocks disagree"});
    let fake = Fake::new(&[("POST /cluster/config/certificates", json!([good, bad]))]).await;
    let ended = fake.run(&["stead", "cluster", "renew-certificates", "--force"]).await;
    assert!(ended.code != 0 && ended.out.contains("clocks disagree"), "{ended:?}");
}
