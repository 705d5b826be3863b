//! `pvecm` and `ha-manager`.

use super::{Tool, Words, unknown};
use crate::cmd::{Cx, cluster, ha};
use crate::connect::{ask_password, host_and_port};
use crate::failure::Failure;
use crate::output::{self, Format};
use crate::params::{Params, take};
use stead_transport::{ClientError, Fingerprint, HttpClient, Target, Trust};

pub const PVECM: &str = "\
pvecm: the cluster

  pvecm create NAME [--link1 IP …]
  pvecm add HOST[:PORT] [--fingerprint HEX] [--link1 IP …]   join this node to the cluster of a member
  pvecm status
  pvecm nodes
  pvecm delnode NODE                          remove a node that is off
  pvecm expected 1                            give up a lost majority; all other nodes must be off
  pvecm updatecerts [--force]                 make this node's certificate anew, if that is due
  pvecm apiver                                the version of the API for joining
";

pub const HA_MANAGER: &str = "\
ha-manager: high availability

  ha-manager status
  ha-manager config
  ha-manager add SID [--state STATE] [--max_restart N] [--max_relocate N] [--comment TEXT]
  ha-manager set SID [--NAME VALUE …]
  ha-manager remove SID
  ha-manager migrate SID NODE
  ha-manager relocate SID NODE
  ha-manager crm-command migrate|relocate SID NODE
  ha-manager crm-command stop SID TIMEOUT
  ha-manager crm-command node-maintenance enable|disable NODE
  ha-manager crm-command disarm-ha freeze|ignore
  ha-manager crm-command arm-ha
";

pub async fn pvecm(cx: &Cx, verb: &str, mut words: Words) -> Result<(), Failure> {
    match verb {
        "create" => {
            let name = words.next("the cluster's name")?;
            let links = take_links(&mut words.params);
            words.nothing()?;
            cluster::create(cx, &name, links).await
        }
        "add" => {
            let member = words.next("the member's address")?;
            let fingerprint = take(&mut words.params, "fingerprint");
            // SSH is the original's means; there is nothing to choose here.
            take(&mut words.params, "use_ssh");
            let links = take_links(&mut words.params);
            words.nothing()?;
            add(cx, &member, fingerprint, links).await
        }
        "status" | "nodes" => {
            words.nothing()?;
            let status = cx.api.get("/cluster/status").await?;
            match (cx.format(), verb) {
                (Format::Json, _) => output::json(&status),
                (Format::Table, "nodes") => output::print(&cluster::nodes(&status)),
                (Format::Table, _) => {
                    let about = cluster::information(&status);
                    output::print(&format!("Cluster information\n-------------------\n{about}\n"))?;
                    output::print(&format!(
                        "Membership information\n----------------------\n{}",
                        cluster::nodes(&status)
                    ))
                }
            }
        }
        "delnode" => {
            let node = words.next("the node")?;
            words.nothing()?;
            cluster::remove(cx, &node).await
        }
        "expected" => {
            let votes = words.next("the votes")?;
            words.nothing()?;
            let votes =
                votes.parse().map_err(|_| Failure::usage(format!("'{votes}' is no number of votes")))?;
            cluster::expected(cx, votes, vec![], false).await
        }
        "updatecerts" => {
            let force = take(&mut words.params, "force").is_some_and(|v| v != "0");
            // There are no hosts' keys to be merged, and nothing that could be said less of.
            take(&mut words.params, "unmerge-known-hosts");
            take(&mut words.params, "silent");
            words.nothing()?;
            let node = cx.api.local_node().await?;
            cluster::renew(cx, Some(&node), force).await
        }
        "apiver" => {
            words.nothing()?;
            cx.format().any(&cx.api.get("/cluster/config/apiversion").await?)
        }
        other => Err(unknown(Tool::Pvecm, other)),
    }
}

/// Takes `link0` to `link7` out.
fn take_links(params: &mut Params) -> Params {
    let names = (0..8).map(|n| format!("link{n}"));
    names.filter_map(|name| Some((name.clone(), take(params, &name)?))).collect()
}

/// Joins by a member's address. A fingerprint that was not given is shown and asked about, as by the original.
async fn add(cx: &Cx, member: &str, fingerprint: Option<String>, links: Params) -> Result<(), Failure> {
    let (host, port) = host_and_port(member)?;
    let fingerprint = match fingerprint {
        Some(hex) => hex.parse::<Fingerprint>().map_err(|e| Failure::usage(format!("--fingerprint: {e}")))?,
        None => {
            let trust = Trust::Fingerprint(Fingerprint([0; 32]));
            let seen = match HttpClient::new(Target::Tls { host: host.clone(), port, trust })?.raw().await {
                Err(ClientError::WrongFingerprint { seen, .. }) => seen,
                Err(e) => return Err(e.into()),
                Ok(_) => return Err(Failure::failed("the member has shown an impossible certificate")),
            };
            output::print(&format!("The fingerprint of {member} is\n  {seen}"))?;
            crate::cmd::vm::ask("Is that the member's", "--fingerprint with it")?;
            seen
        }
    };
    let password = match std::env::var("STEAD_CLUSTER_PASSWORD") {
        Ok(password) => password,
        Err(_) => {
            ask_password(&format!("Password of root@pam at {member}: "), "set STEAD_CLUSTER_PASSWORD to it")?
        }
    };
    let member = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    cluster::add(cx, &member, &fingerprint.to_string(), password, links).await
}

pub async fn ha_manager(cx: &Cx, verb: &str, mut words: Words) -> Result<(), Failure> {
    if verb == "status" || verb == "config" {
        take(&mut words.params, "verbose");
        words.nothing()?;
        return match (verb, cx.format()) {
            ("config", _) => ha::list(cx).await,
            (_, Format::Json) => ha::status(cx).await,
            _ => output::print(&ha::status_lines(&cx.api.get("/cluster/ha/status/current").await?)),
        };
    }
    if verb == "crm-command" {
        return crm_command(cx, words).await;
    }
    if !["add", "set", "remove", "migrate", "relocate"].contains(&verb) {
        return Err(unknown(Tool::HaManager, verb));
    }
    let sid = words.next("the resource")?;
    let node = match verb {
        "migrate" | "relocate" => words.next("the target node")?,
        _ => String::new(),
    };
    words.end()?;
    if ["migrate", "relocate"].contains(&verb) {
        words.nothing()?;
    }
    match verb {
        "add" => ha::add(cx, &sid, words.params).await,
        "set" => ha::set(cx, &sid, &words.params).await,
        "remove" => ha::remove(cx, &sid, &words.params).await,
        how => ha::shift(cx, how, &sid, &node).await,
    }
}

/// `ha-manager crm-command`.
async fn crm_command(cx: &Cx, mut words: Words) -> Result<(), Failure> {
    let verb = words.next("the command")?;
    match verb.as_str() {
        how @ ("migrate" | "relocate") => {
            let (sid, node) = (words.next("the resource")?, words.next("the target node")?);
            words.nothing()?;
            ha::shift(cx, how, &sid, &node).await
        }
        "stop" => {
            let (sid, timeout) = (words.next("the resource")?, words.next("the time-out in seconds")?);
            words.nothing()?;
            ha::stop(cx, &sid, &timeout).await
        }
        "node-maintenance" => {
            let (how, node) = (words.next("enable or disable")?, words.next("the node")?);
            words.nothing()?;
            ha::maintenance(cx, &how, &node).await
        }
        "disarm-ha" => {
            let mode = words.next("freeze or ignore")?;
            words.nothing()?;
            ha::disarm(cx, &mode).await
        }
        "arm-ha" => {
            words.nothing()?;
            ha::arm(cx).await
        }
        other => Err(unknown(Tool::HaManager, other)),
    }
}
