//! Tickets, secrets and permissions, as every node must see them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use proptest::prelude::*;
use std::collections::BTreeSet;
use stead_access::directory::{Acl, Pool, Token, User, Who};
use stead_access::ticket::{CONSOLE_LIFETIME, LIFETIME, SKEW};
use stead_access::{
    AuthError, AuthId, Builtin, Directory, Keyring, Privilege, Realm, ShadowStore, Stamps, TicketError,
    TokenStore, UsedTickets,
};

const NOW: u64 = 1_700_000_000;

fn keyring() -> Keyring {
    Keyring::new(&[7; 32])
}

fn id(text: &str) -> AuthId {
    text.parse().unwrap()
}

#[test]
fn a_ticket_is_good_on_every_node_for_two_hours() {
    let user = "a:b@pve".parse::<stead_model::UserId>();
    assert!(user.is_err(), "a colon would blur a ticket's parts");
    let user = "jane.doe@pve".parse().unwrap();
    let none = Stamps::default();
    let ticket = keyring().ticket(&user, &none, NOW);
    assert_eq!(
        ticket, "PVE:jane.doe@pve:6553F100::wsOdjDC1NL9GoWmXRxH8OeqfWi4ENkWhpTC9S5sJgQc=",
        "other versions take it"
    );
    assert_eq!(keyring().check_ticket(&ticket, &none, NOW + LIFETIME - 1), Ok(user.clone()));
    assert_eq!(keyring().check_ticket(&ticket, &none, NOW + LIFETIME), Err(TicketError::Expired));
    assert_eq!(
        keyring().check_ticket(&ticket, &none, NOW - 301),
        Err(TicketError::Invalid),
        "from the future"
    );
    assert_eq!(Keyring::new(&[8; 32]).check_ticket(&ticket, &none, NOW), Err(TicketError::Invalid));
    let forged = ticket.replace("jane.doe", "root");
    assert_eq!(keyring().check_ticket(&forged, &none, NOW), Err(TicketError::Invalid));
}

#[test]
fn a_ticket_ends_with_the_password_it_was_given_for() {
    let (jane, joe) = ("jane@pve".parse().unwrap(), "joe@pve".parse().unwrap());
    let mut shadow = ShadowStore::default();
    shadow.set(&jane, "correct horse", &[1; 16]).unwrap();
    shadow.set(&joe, "correct horse", &[2; 16]).unwrap();
    let before = Stamps::from(&shadow);
    // From a clock that is ahead: the time says nothing of what came first.
    let janes = keyring().ticket(&jane, &before, NOW + SKEW);
    let joes = keyring().ticket(&joe, &before, NOW);
    assert_eq!(
        joes, "PVE:joe@pve:6553F100::kjtdSQyGtn+LYzH7oELykNkBmU58d5/Xz3vCtZPdZ7g=",
        "other versions take it"
    );
    shadow.set(&jane, "correct horse", &[3; 16]).unwrap();
    let after = Stamps::from(&ShadowStore::parse(&shadow.to_text()).unwrap());
    assert_eq!(keyring().check_ticket(&janes, &before, NOW), Ok(jane.clone()));
    assert_eq!(keyring().check_ticket(&janes, &after, NOW), Err(TicketError::Invalid));
    assert_eq!(keyring().check_ticket(&joes, &after, NOW), Ok(joe));
    let new = keyring().ticket(&jane, &after, NOW);
    assert_eq!(keyring().check_ticket(&new, &after, NOW), Ok(jane));
}

#[test]
fn one_kind_of_ticket_is_not_another() {
    let user = "u@pve".parse().unwrap();
    let csrf = keyring().csrf(&user, NOW);
    assert_eq!(keyring().check_csrf(&csrf, &user, NOW + 1), Ok(()));
    assert_eq!(keyring().check_csrf(&csrf, &"v@pve".parse().unwrap(), NOW), Err(TicketError::Invalid));
    let (time, sig) = csrf.split_once(':').unwrap();
    assert_eq!(
        keyring().check_ticket(&format!("PVE:u@pve:{time}::{sig}"), &Stamps::default(), NOW),
        Err(TicketError::Invalid)
    );
    let vnc = keyring().console_ticket("u@pve", "/vms/100", 5901, NOW, 1);
    let check = |who, path, port, now| keyring().check_console(&vnc, who, path, port, now);
    assert_eq!(check("u@pve", "/vms/100", 5901, NOW), Ok(()));
    assert_eq!(check("u@pve", "/vms/101", 5901, NOW), Err(TicketError::Invalid));
    assert_eq!(check("v@pve", "/vms/100", 5901, NOW), Err(TicketError::Invalid));
    assert_eq!(check("u@pve", "/vms/100", 5902, NOW), Err(TicketError::Invalid));
    assert_eq!(check("u@pve", "/vms/100", 5901, NOW + CONSOLE_LIFETIME), Err(TicketError::Expired));
}

#[test]
fn a_consoles_ticket_is_good_once() {
    let ticket = |nonce| keyring().console_ticket("u@pve", "/vms/100", 5901, NOW, nonce);
    let mut used = UsedTickets::default();
    assert!(used.first_use(&ticket(1), NOW));
    assert!(!used.first_use(&ticket(1), NOW + 1));
    assert!(used.first_use(&ticket(2), NOW + 1), "made in the same second for the same console");
    // One from a clock that is ahead is fresh for longer.
    let ahead = keyring().console_ticket("u@pve", "/vms/100", 5901, NOW + SKEW, 3);
    let good = |now| keyring().check_console(&ahead, "u@pve", "/vms/100", 5901, now).is_ok();
    assert!(used.first_use(&ahead, NOW));
    let last = NOW + SKEW + CONSOLE_LIFETIME - 1;
    assert!(good(last) && !used.first_use(&ahead, last));
}

#[test]
fn passwords_and_secrets_are_kept_as_hashes_only() {
    let user = "u@pve".parse().unwrap();
    let mut shadow = ShadowStore::default();
    assert!(matches!(shadow.set(&user, "short", &[1; 16]), Err(AuthError::Unfit(_))));
    shadow.set(&user, "correct horse", &[1; 16]).unwrap();
    let text = shadow.to_text();
    assert!(!text.contains("horse"));
    assert_eq!(ShadowStore::parse(&text).unwrap(), shadow);
    let realm = Builtin(shadow);
    assert_eq!(realm.authenticate(&user, "correct horse"), Ok(()));
    assert_eq!(realm.authenticate(&user, "correct house"), Err(AuthError::Failure));
    assert_eq!(realm.authenticate(&"x@pve".parse().unwrap(), "correct horse"), Err(AuthError::Failure));

    let token = "u@pve!ci".parse().unwrap();
    let mut store = TokenStore::default();
    let secret = store.generate(&token, [9; 16]);
    assert_eq!(secret, "09090909-0909-4909-8909-090909090909");
    let text = store.to_text();
    assert!(!text.contains(&secret));
    let mut store = TokenStore::parse(&text).unwrap();
    assert!(store.verify(&token, &secret));
    assert!(!store.verify(&token, "09090909-0909-4909-8909-090909090908"));
    assert!(!store.verify(&"u@pve!other".parse().unwrap(), &secret));
    store.remove(&token);
    assert!(!store.verify(&token, &secret));
    assert!(TokenStore::parse("no blank").is_err());
}

fn acl(path: &str, propagate: bool, who: Who, role: &str) -> Acl {
    Acl { path: path.into(), propagate, who, role: role.into() }
}

fn user(name: &str) -> Who {
    Who::User(name.into())
}

fn people() -> Directory {
    let mut d = Directory::default();
    for name in ["u@pve", "v@pve"] {
        d.users.insert(name.into(), User { enabled: true, expire: 0 });
    }
    d.groups.insert("ops".into(), BTreeSet::from(["u@pve".into(), "v@pve".into()]));
    d
}

fn may(d: &Directory, who: &str, path: &str, privilege: &str) -> bool {
    d.check(&id(who), path, privilege, NOW)
}

#[test]
fn deeper_entries_replace_inherited_ones_and_users_replace_groups() {
    let mut d = people();
    d.acl.push(acl("/", true, Who::Group("ops".into()), "PVEVMAdmin"));
    assert!(may(&d, "u@pve", "/vms/100", "VM.Allocate"));
    d.acl.push(acl("/vms/100", true, Who::Group("ops".into()), "PVEAuditor"));
    assert!(!may(&d, "u@pve", "/vms/100", "VM.Allocate"), "replaced, not added");
    assert!(may(&d, "u@pve", "/vms/101", "VM.Allocate"));
    d.acl.push(acl("/vms/100", true, user("u@pve"), "PVEVMUser"));
    assert!(may(&d, "u@pve", "/vms/100", "VM.PowerMgmt"));
    assert!(!may(&d, "v@pve", "/vms/100", "VM.PowerMgmt"), "the group's entry still holds for others");
    d.acl.push(acl("/vms/100", true, user("u@pve"), "NoAccess"));
    assert!(!may(&d, "u@pve", "/vms/100", "VM.Audit"), "NoAccess takes all away");
    assert!(may(&d, "root@pam", "/vms/100", "Sys.Modify"));
    assert!(!may(&d, "root@pam", "/vms/100", "No.Such"));
}

#[test]
fn what_does_not_propagate_ends_at_its_path() {
    let mut d = people();
    d.acl.push(acl("/vms", false, user("u@pve"), "PVEVMUser"));
    assert!(may(&d, "u@pve", "/vms", "VM.Audit"));
    assert!(!may(&d, "u@pve", "/vms/100", "VM.Audit"));
    assert_eq!(d.map(&id("u@pve"), "/vms", NOW).get("VM.Audit"), Some(&false));
    assert_eq!(d.overview(&id("u@pve"), NOW).keys().collect::<Vec<_>>(), ["/vms"]);
}

#[test]
fn a_pools_entries_hold_for_its_members() {
    let mut d = people();
    let pool =
        Pool { guests: BTreeSet::from([100]), storages: BTreeSet::from(["fast".into()]), ..Pool::default() };
    d.pools.insert("dev".into(), pool);
    d.acl.push(acl("/pool/dev", true, user("u@pve"), "PVEAdmin"));
    assert!(may(&d, "u@pve", "/vms/100", "VM.Allocate"));
    assert!(may(&d, "u@pve", "/storage/fast", "Datastore.AllocateSpace"));
    assert!(!may(&d, "u@pve", "/vms/101", "VM.Allocate"));
    d.acl.push(acl("/vms/100", true, user("u@pve"), "NoAccess"));
    assert!(!may(&d, "u@pve", "/vms/100", "VM.Allocate"));
}

#[test]
fn who_is_gone_disabled_or_expired_may_nothing() {
    let mut d = people();
    d.acl.push(acl("/", true, user("u@pve"), "Administrator"));
    d.acl.push(acl("/", true, Who::Token("u@pve!tk".into()), "Administrator"));
    d.tokens.insert("u@pve!tk".into(), Token { expire: NOW, privsep: true, comment: None });
    assert!(may(&d, "u@pve", "/", "Sys.Audit"));
    assert!(!may(&d, "u@pve!tk", "/", "Sys.Audit"), "expired");
    assert!(!may(&d, "u@pve!gone", "/", "Sys.Audit"));
    assert!(!may(&d, "x@pve", "/", "Sys.Audit"));
    d.users.insert("u@pve".into(), User { enabled: false, expire: 0 });
    assert!(!may(&d, "u@pve", "/", "Sys.Audit"));
}

fn any_path() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["/", "/vms", "/vms/100", "/vms/101", "/storage/s", "/pool/p", "/nodes/n1"])
        .prop_map(str::to_owned)
}

fn any_acl() -> impl Strategy<Value = Acl> {
    let who = prop_oneof![
        Just(user("u@pve")),
        Just(user("v@pve")),
        Just(Who::Group("ops".into())),
        Just(Who::Token("u@pve!tk".into())),
    ];
    let role = prop::sample::select(stead_access::roles::BUILT_IN.to_vec());
    (any_path(), any::<bool>(), who, role)
        .prop_map(|(path, propagate, who, role)| acl(&path, propagate, who, role))
}

proptest! {
    #[test]
    fn a_separated_token_never_has_more_than_its_user(acl in prop::collection::vec(any_acl(), 0..12), path in any_path()) {
        let mut d = people();
        d.acl = acl;
        d.pools.insert("p".into(), Pool { guests: BTreeSet::from([100]), ..Pool::default() });
        d.tokens.insert("u@pve!tk".into(), Token { privsep: true, ..Token::default() });
        d.tokens.insert("u@pve!full".into(), Token::default());
        let of = |who: &str| d.privileges(&id(who), &path, NOW);
        prop_assert!(of("u@pve").here.contains(of("u@pve!tk").here));
        prop_assert_eq!(of("u@pve"), of("u@pve!full"));
        prop_assert!(of("u@pve").here.contains(of("u@pve").below));
    }

    #[test]
    fn no_access_on_the_path_itself_leaves_nothing(acl_list in prop::collection::vec(any_acl(), 0..12), path in any_path()) {
        let mut d = people();
        d.acl = acl_list;
        d.acl.push(acl(&path, true, user("u@pve"), "NoAccess"));
        prop_assert!(d.privileges(&id("u@pve"), &path, NOW).here.is_empty());
    }

    #[test]
    fn entries_of_others_change_nothing(list in prop::collection::vec(any_acl(), 0..12), path in any_path()) {
        let mut d = people();
        d.acl = list;
        let before = d.privileges(&id("u@pve"), &path, NOW);
        d.acl.push(acl(&path, true, user("v@pve"), "Administrator"));
        prop_assert_eq!(before, d.privileges(&id("u@pve"), &path, NOW));
        let all = Privilege::all().all(|p| d.check(&id("v@pve"), &path, p.name(), NOW));
        let denied = d.acl.iter().any(|a| a.role == "NoAccess" && a.who == user("v@pve"));
        prop_assert!(all || denied);
    }

    #[test]
    fn no_text_that_was_not_signed_is_a_ticket(text in "PVE:[a-z]{1,5}@pve:[0-9A-F]{8}::[A-Za-z0-9+/]{43}=") {
        prop_assert_eq!(keyring().check_ticket(&text, &Stamps::default(), NOW), Err(TicketError::Invalid));
    }
}

#[test]
fn the_directory_is_what_user_cfg_says() {
    let text = "user:u@pve:1:0:::::\ntoken:u@pve!tk:0:1:ci:\ngroup:ops:u@pve::\npool:dev::100:fast:\n\
                role:Viewer:VM.Audit,Sys.Gone:\nacl:1:/vms:@ops:Viewer:\nacl:0:/storage:u@pve!tk:PVEDatastoreUser:\n";
    let d = Directory::from(&stead_model::UserCfg::parse(text).unwrap());
    assert!(may(&d, "u@pve", "/vms/7", "VM.Audit"));
    assert!(!may(&d, "u@pve", "/vms/7", "VM.Clone"));
    assert!(!may(&d, "u@pve!tk", "/vms/7", "VM.Audit"), "its privileges are separated");
    assert_eq!(d.pools["dev"].guests, BTreeSet::from([100]));
    assert_eq!(d.tokens["u@pve!tk"].comment.as_deref(), Some("ci"));
}
