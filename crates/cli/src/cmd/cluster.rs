//! `stead cluster`.

use super::Cx;
use super::vm::{ask, confirm};
use crate::api::{rows, text, truth};
use crate::connect::ask_password;
use crate::failure::Failure;
use crate::output::{self, Column, Format, Kind};
use crate::params::{Params, escape, put, settings};
use clap::{Args, Subcommand};
use http::Method;
use serde_json::Value;
use std::io::Read;
use stead_transport::JoinInfo;
use stead_transport::join::TokenRecord;

/// How root@pam's password in the cluster to be joined is given.
pub const CLUSTER_PASSWORD: &str =
    "set STEAD_CLUSTER_PASSWORD to root@pam's password in the cluster, or give --join-token";

const NODES: [Column; 10] = [
    ("NODE", "name", Kind::Text),
    ("ID", "nodeid", Kind::Number),
    ("ADDRESS", "ip", Kind::Text),
    ("PORT", "port", Kind::Number),
    ("ONLINE", "online", Kind::Truth),
    ("LOST", "lost", Kind::Truth),
    ("VOTES", "votes", Kind::Number),
    ("SITE", "site", Kind::Text),
    ("RACK", "rack", Kind::Text),
    ("HERE", "local", Kind::Truth),
];

const LINKS: [Column; 5] = [
    ("NODE", "node", Kind::Text),
    ("LINK", "link", Kind::Number),
    ("ADDRESS", "address", Kind::Text),
    ("STATE", "state", Kind::Text),
    ("SINCE", "since", Kind::Time),
];

const RENEWALS: [Column; 5] = [
    ("NODE", "node", Kind::Text),
    ("RENEWED", "renewed", Kind::Truth),
    ("GOOD UNTIL", "notafter", Kind::Time),
    ("FINGERPRINT", "fingerprint", Kind::Text),
    ("ERROR", "error", Kind::Text),
];

const ASIDES: [Column; 5] = [
    ("NODE", "node", Kind::Text),
    ("WHEN", "at", Kind::Time),
    ("USER", "user", Kind::Text),
    ("PATH", "path", Kind::Text),
    ("WHAT FOR", "note", Kind::Text),
];

/// How to join.
#[derive(Debug, Args)]
pub struct Join {
    /// What 'stead cluster join-info' has printed on a member ('-' reads it from the standard input)
    pub information: String,
    /// A one-time token instead of the password
    #[arg(long, value_name = "TOKEN")]
    pub join_token: Option<String>,
    /// root@pam's password in the cluster; asked for when it is missing and there is no token
    #[arg(long, env = "STEAD_CLUSTER_PASSWORD", hide_env_values = true, value_name = "PASSWORD")]
    pub cluster_password: Option<String>,
    /// A further address of this node, on a network of its own; may be repeated
    #[arg(long = "link", value_name = "N=IP")]
    pub links: Vec<String>,
    /// A password was given, but for signing in at a server.
    #[arg(skip)]
    pub idle_password: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make this node the first of a cluster
    Create {
        /// The cluster's name
        name: String,
        /// A further address of this node, on a network of its own; may be repeated
        #[arg(long = "link", value_name = "N=IP")]
        links: Vec<String>,
    },
    /// Print what a node needs to join, as one string to copy
    JoinInfo {
        /// Put a one-time token into it, so that no password is needed
        #[arg(long)]
        with_token: bool,
    },
    /// Join this node to a cluster
    #[command(after_help = "Example, on the node to be added:\n  stead cluster join eyJ2IjoxLCJhZGRycyI6…")]
    Join(Join),
    /// Take this node out of its cluster
    Leave {
        /// Don't ask
        #[arg(long, short = 'y')]
        yes: bool,
    },
    /// Remove a node that is off and will not come back as it was
    Remove {
        /// The node
        node: String,
        /// Don't ask
        #[arg(long, short = 'y')]
        yes: bool,
    },
    /// Give up a lost majority: this node alone begins a new cluster epoch
    #[command(
        after_help = "For when so many nodes are lost that the others can decide nothing, and will not come back soon. Every other \
                      node must be off: look at each of them. This node then decides alone; guests that HA guards here are \
                      started anew. Guests of the other nodes are not recovered before 'stead node confirm-off NODE' is \
                      said of each. Nodes that come back take over the state of this one; what they had changed alone is \
                      kept in their folders, and shown by 'stead cluster status'.\n\nExample, as root on the node that is \
                      left:\n  stead cluster expected 1"
    )]
    Expected {
        /// How many votes are expected: 1
        votes: u32,
        /// A node that is off; may be repeated, and must name every other node. Without it each is asked for
        #[arg(long, value_name = "NODE")]
        off: Vec<String>,
        /// Don't ask; every other node must be named by --off
        #[arg(long, short = 'y')]
        yes: bool,
    },
    /// Give up this node's cluster epoch for another one that goes on beside it
    Rejoin {
        /// A node of the epoch to go over to, where several go on beside this one
        #[arg(long)]
        node: Option<String>,
        /// Don't ask
        #[arg(long, short = 'y')]
        yes: bool,
    },
    /// Show the CPU that every node can run, which a VM with 'cpu: cluster' has, and which node stands in the way of more
    Cpu,
    /// Show what nodes had alone that came back from an older cluster epoch: changes to make again where they are wanted
    Asides,
    /// Forget what a node had alone that came back from an older cluster epoch; somebody has looked at it
    ForgetAside {
        /// The node
        node: String,
    },
    /// Show quorum and nodes
    Status,
    /// Show the nodes' links, the networks by which they reach each other, and whether they answer
    Links,
    /// Give a node further links, or take them away; guests run on
    #[command(
        after_help = "A node's port answers at each of its links, and the others use whichever answers, the lowest number \
                      first. Link 1 of one node must reach link 1 of the others.\n\nExamples:\n  \
                      stead cluster set-links pve1 1=10.1.0.11\n  stead cluster set-links pve1 --delete 1"
    )]
    SetLinks {
        /// The node
        node: String,
        /// Links to set: their numbers, from 1 to 7, and addresses
        #[arg(value_name = "N=IP", required_unless_present = "delete")]
        links: Vec<String>,
        /// Links to take away, by number; may be repeated
        #[arg(long, value_name = "N")]
        delete: Vec<u8>,
    },
    /// Make the nodes' certificates anew where that is due, and the cluster CA's
    #[command(
        after_help = "The nodes do so by themselves, long before their certificates end; this is for when they could not. A majority \
                      must be in contact, which does not depend on any certificate's end. Each node signs its own; the others' go \
                      on meanwhile, as open connections do. Clients that trust a fingerprint must be given the new one.\n\n\
                      Examples:\n  stead cluster renew-certificates\n  stead cluster renew-certificates --node pve1 --force"
    )]
    RenewCertificates {
        /// This node's alone
        #[arg(long)]
        node: Option<String>,
        /// Also those that are good still, and where the nodes' clocks disagree
        #[arg(long)]
        force: bool,
    },
    /// Show the options of the whole cluster, or change them
    #[command(
        after_help = "Examples:\n  stead cluster options\n  stead cluster options next-id=lower=200,upper=1000\n  stead cluster options --delete next-id"
    )]
    Options {
        /// Options to set
        #[arg(value_name = "KEY=VALUE")]
        settings: Vec<String>,
        /// Options to bring back to their defaults, separated by commas
        #[arg(long, value_name = "KEYS")]
        delete: Option<String>,
    },
}

async fn cpu(cx: &Cx) -> Result<(), Failure> {
    let common = cx.api.get("/cluster/qemu/common").await?;
    if cx.format() == Format::Json {
        return output::json(&common);
    }
    output::print(cpu_page(&common).trim_end())
}

/// The common CPU, and of each level that is not common who lacks what.
fn cpu_page(common: &Value) -> String {
    let list = |value: &Value| {
        let words = value.as_array().into_iter().flatten().map(text);
        words.collect::<Vec<_>>().join(", ")
    };
    let mut page = format!(
        "cpu:    {}\nnodes:  {} ({})\nmakers: {}\n",
        text(&common["cpu"]),
        list(&common["nodes"]),
        text(&common["accel"]),
        list(&common["vendors"])
    );
    for (level, short) in common["lacking"].as_object().into_iter().flatten() {
        for (node, missing) in short.as_object().into_iter().flatten() {
            page += &format!("not {level}: node '{node}' lacks {}\n", list(missing));
        }
    }
    let unknown = list(&common["unknown"]);
    if !unknown.is_empty() {
        page += &format!("nothing is known yet of {unknown}\n");
    }
    page
}

pub async fn run(cx: &Cx, command: Command) -> Result<(), Failure> {
    match command {
        Command::Create { name, links } => create(cx, &name, link_params(&links)?).await,
        Command::JoinInfo { with_token } => join_info(cx, with_token).await,
        Command::Join(j) => join(cx, j).await,
        Command::Leave { yes } => {
            let node = cx.api.local_node().await?;
            if !yes {
                confirm(&format!("Take this node ('{node}') out of its cluster"))?;
            }
            let answer = cx.api.delete(&format!("/cluster/config/nodes/{}", escape(&node)), &vec![]).await?;
            cx.answer(&answer, &format!("node '{node}' has left; it starts anew as a cluster of its own"))
                .await
        }
        Command::Remove { node, yes } => {
            if !yes {
                confirm(&format!("Remove the node '{node}' for good; it must be off"))?;
            }
            remove(cx, &node).await
        }
        Command::Expected { votes, off, yes } => expected(cx, votes, off, yes).await,
        Command::Rejoin { node, yes } => rejoin(cx, node, yes).await,
        Command::Cpu => cpu(cx).await,
        Command::Asides => asides(cx).await,
        Command::ForgetAside { node } => {
            let path = format!("/cluster/config/aside/{}", escape(&node));
            cx.format().done(
                &cx.api.delete(&path, &vec![]).await?,
                &format!("what node '{node}' had alone is forgotten"),
            )
        }
        Command::Status => status(cx).await,
        Command::Links => links(cx).await,
        Command::SetLinks { node, links, delete } => set_links(cx, &node, &links, &delete).await,
        Command::RenewCertificates { node, force } => renew(cx, node.as_deref(), force).await,
        Command::Options { settings, delete } => options(cx, &settings, delete).await,
    }
}

async fn options(cx: &Cx, words: &[String], delete: Option<String>) -> Result<(), Failure> {
    let mut p = settings(words)?;
    put(&mut p, "delete", delete);
    if p.is_empty() {
        return cx.format().object(&cx.api.get("/cluster/options").await?);
    }
    cx.format().done(&cx.api.put("/cluster/options", &p).await?, "the cluster's options are changed")
}

/// `1=10.1.0.11` as the parameter `link1`.
fn link_params(words: &[String]) -> Result<Params, Failure> {
    let read = |word: &String| match word.split_once('=') {
        Some((n, addr)) if n.parse::<u8>().is_ok() => Ok((format!("link{n}"), addr.to_owned())),
        _ => Err(Failure::usage(format!("'{word}' is no link: expected N=IP, e.g. 1=10.1.0.11"))),
    };
    words.iter().map(read).collect()
}

async fn links(cx: &Cx) -> Result<(), Failure> {
    let mut links = cx.api.get("/cluster/config/links").await?;
    if cx.format() == Format::Table {
        for link in links.as_array_mut().into_iter().flatten() {
            let state =
                link.get("answers").map_or("unknown", |a| if truth(a) { "answers" } else { "silent" });
            link["state"] = state.into();
        }
    }
    cx.format().list(&links, &LINKS)
}

/// Has certificates made anew. One that could not be is a failure, after all were shown.
pub async fn renew(cx: &Cx, node: Option<&str>, force: bool) -> Result<(), Failure> {
    let mut p = Params::new();
    put(&mut p, "node", node);
    put(&mut p, "force", force.then_some("1"));
    let done = cx.api.post("/cluster/config/certificates", &p).await?;
    cx.format().list(&done, &RENEWALS)?;
    match rows(&done).iter().any(|row| row["error"].is_string()) {
        true => Err(Failure::failed("not all certificates could be looked after")),
        false => Ok(()),
    }
}

async fn set_links(cx: &Cx, node: &str, links: &[String], delete: &[u8]) -> Result<(), Failure> {
    let mut p = link_params(links)?;
    let delete: Vec<String> = delete.iter().map(|n| format!("link{n}")).collect();
    put(&mut p, "delete", (!delete.is_empty()).then(|| delete.join(",")));
    let answer = cx.api.put(&format!("/cluster/config/nodes/{}", escape(node)), &p).await?;
    cx.format().done(
        &answer,
        &format!("links of node '{node}' changed; 'stead cluster links' shows whether they answer"),
    )
}

/// Makes a cluster; `p` has this node's links.
pub async fn create(cx: &Cx, name: &str, mut p: Params) -> Result<(), Failure> {
    put(&mut p, "clustername", Some(name));
    let answer = cx.api.post("/cluster/config", &p).await?;
    cx.answer(&answer, &format!("cluster '{name}' created")).await
}

async fn join_info(cx: &Cx, with_token: bool) -> Result<(), Failure> {
    // To make a token is a change.
    let (method, path) = match with_token {
        true => (Method::POST, "/cluster/config/join-token"),
        false => (Method::GET, "/cluster/config/join"),
    };
    let info = cx.api.call(method, path, &Params::new()).await?;
    if cx.format() == Format::Json {
        return output::json(&info);
    }
    match info["information"].as_str() {
        Some(text) => output::print(text),
        None => Err(Failure::failed("the server gives no join information")),
    }
}

async fn join(cx: &Cx, join: Join) -> Result<(), Failure> {
    let mut information = join.information;
    if information == "-" {
        information.clear();
        std::io::stdin().read_to_string(&mut information)?;
    }
    // Read here as well: a string that was cut off is told at once, and the question names the cluster.
    let info: JoinInfo = information.parse().map_err(|e| Failure::usage(format!("{e}")))?;
    let secret = match (join.join_token.or_else(|| info.token.clone()), join.cluster_password) {
        // Told here: the daemon would take it for a password, and the cluster refuse that.
        (Some(token), _) if TokenRecord::id_of(&token).is_none() => {
            return Err(Failure::usage(
                "this is not a join token: it is 16 hexadecimal digits, '.', and 64 more, as 'stead cluster join-info \
                 --with-token' prints it on a member",
            ));
        }
        (Some(token), _) => token,
        (None, Some(password)) => password,
        (None, None) if join.idle_password => {
            return Err(Failure::usage(format!(
                "--password, --password-file and STEAD_PASSWORD sign in at --server: {CLUSTER_PASSWORD}"
            )));
        }
        (None, None) => {
            ask_password(&format!("Password of root@pam in cluster '{}': ", info.cluster), CLUSTER_PASSWORD)?
        }
    };
    // The whole string says more than an address would: which cluster it must be.
    let information: String = information.split_whitespace().collect();
    add(cx, &information, &info.fingerprint.to_string(), secret, link_params(&join.links)?).await
}

/// Joins this node to the cluster of a member: its address or its join information. `p` has this node's links.
pub async fn add(
    cx: &Cx,
    member: &str,
    fingerprint: &str,
    secret: String,
    mut p: Params,
) -> Result<(), Failure> {
    put(&mut p, "hostname", Some(member));
    put(&mut p, "fingerprint", Some(fingerprint));
    put(&mut p, "password", Some(secret));
    let answer = cx.api.post("/cluster/config/join", &p).await?;
    cx.answer(&answer, "joined").await
}

/// What nodes had alone, change by change.
async fn asides(cx: &Cx) -> Result<(), Failure> {
    let asides = cx.api.get("/cluster/config/aside").await?;
    if cx.format() == Format::Json {
        return output::json(&asides);
    }
    let mut changes = vec![];
    for aside in rows(&asides) {
        for change in rows(&aside["changes"]) {
            let mut row = change.clone();
            row["node"] = aside["node"].clone();
            row["at"] = row["at"].as_u64().filter(|at| *at > 0).map(|at| at as f64 / 1000.0).into();
            changes.push(row);
        }
    }
    cx.format().list(&Value::Array(changes), &ASIDES)?;
    for aside in rows(&asides) {
        let (node, place) = (text(&aside["node"]), text(&aside["place"]));
        if let Some(why) = aside["unreadable"].as_str() {
            output::print(&format!("What node '{node}' had cannot be read: {why}"))?;
        }
        if let Some(more) = aside["more"].as_u64().filter(|more| *more > 0) {
            output::print(&format!("{more} more of node '{node}' are in '{place}', in its folder, alone"))?;
        }
    }
    Ok(())
}

/// Goes over to another epoch that goes on beside this one.
async fn rejoin(cx: &Cx, node: Option<String>, yes: bool) -> Result<(), Failure> {
    if !yes {
        let present = cx.api.get("/cluster/config/expected").await?;
        for other in rows(&present["beside"]) {
            output::print(&format!(
                "node '{}' goes on in epoch {}",
                text(&other["node"]),
                text(&other["epoch"])
            ))?;
        }
        confirm(
            "This node's configuration is put aside, and guests that run here and are not its own in the other cluster epoch are \
             destroyed. Go over to it",
        )?;
    }
    let p = node.map(|node| ("node".to_owned(), node)).into_iter().collect();
    let answer = cx.api.post("/cluster/config/rejoin", &p).await?;
    cx.answer(&answer, "the daemon starts anew and goes over to the other cluster epoch").await
}

/// Gives up a lost majority. Every other node must be named, by `off` or at the prompt; `yes` asks nothing.
pub async fn expected(cx: &Cx, votes: u32, mut off: Vec<String>, yes: bool) -> Result<(), Failure> {
    let present = cx.api.get("/cluster/config/expected").await?;
    let sensible = votes == 1 && present["quorate"] == 0;
    // What is refused anyhow needs nobody's word.
    if sensible && !yes {
        if let Some(at) = present["last_change"].as_u64() {
            output::print(&format!(
                "The last change that this node knows: {}. If another node knows a later one, begin there",
                output::time(at as f64 / 1000.0)
            ))?;
        }
        if let Some(why) = present["ends_unknown"].as_str() {
            let what =
                "no new cluster epoch can begin here: it can't be told which guests of this node would end";
            return Err(Failure::failed(format!("{what}: {why}. See 'systemctl status stead-fenced'")));
        }
        let ends: Vec<String> = rows(&present["ends"]).iter().map(text).collect();
        if !ends.is_empty() {
            output::print(&format!(
                "These guests end here, and HA starts its own anew: {}",
                ends.join(", ")
            ))?;
        }
        let others: Vec<&str> = rows(&present["others"]).iter().filter_map(Value::as_str).collect();
        let all: Vec<String> = others.iter().map(|node| format!("--off {node}")).collect();
        let hint = format!("'stead cluster expected 1 {}'", all.join(" "));
        for node in others {
            if off.iter().any(|n| n == node) {
                continue;
            }
            ask(
                &format!(
                    "If node '{node}' still runs, guests will run twice and destroy their disks. I have made sure that the \
                     power of '{node}' is off"
                ),
                &hint,
            )?;
            off.push(node.to_owned());
        }
    }
    let mut p = vec![("votes".to_owned(), votes.to_string())];
    p.extend(off.into_iter().map(|node| ("off".to_owned(), node)));
    let answer = cx.api.post("/cluster/config/expected", &p).await?;
    cx.answer(&answer, "the daemon starts anew, and begins a new cluster epoch on this node alone: see 'stead cluster status'")
        .await
}

/// Removes a node.
pub async fn remove(cx: &Cx, node: &str) -> Result<(), Failure> {
    let answer = cx.api.delete(&format!("/cluster/config/nodes/{}", escape(node)), &vec![]).await?;
    cx.answer(&answer, &format!("node '{node}' removed")).await
}

async fn status(cx: &Cx) -> Result<(), Failure> {
    let status = cx.api.get("/cluster/status").await?;
    if cx.format() == Format::Json {
        return output::json(&status);
    }
    let outlook = of(&status, "cluster").first().and_then(|c| c["outlook"].as_str());
    let outlook = outlook.map(|line| format!("\n\n{line}")).unwrap_or_default();
    let spread = of(&status, "cluster").first().and_then(|c| c["spread"].as_str());
    let spread = spread.map(|line| format!("\n\n{line}")).unwrap_or_default();
    let warnings = of(&status, "cluster").first().map(|c| rows(&c["warnings"])).unwrap_or_default();
    let warnings: String = warnings.iter().map(|line| format!("\n\nwarning: {}", text(line))).collect();
    output::print(&format!("{}\n\n{}{outlook}{spread}{warnings}", information(&status), nodes(&status)))
}

/// The cluster in a few lines, as `pvecm status` does.
pub fn information(status: &Value) -> String {
    let (nodes, cluster) = (of(status, "node"), of(status, "cluster"));
    let Some(cluster) = cluster.first() else { return "not in a cluster".into() };
    let votes = |n: &&&Value| n.get("votes").is_none_or(truth);
    let voters = nodes.iter().filter(votes).count();
    let present = nodes.iter().filter(votes).filter(|n| truth(&n["online"])).count();
    let mut lines = vec![
        format!("Name:             {}", text(&cluster["name"])),
        format!("Config Version:   {}", text(&cluster["version"])),
        format!("Nodes:            {}", nodes.len()),
        format!("Quorate:          {}", if truth(&cluster["quorate"]) { "Yes" } else { "No" }),
        format!("Expected votes:   {voters}"),
        format!("Total votes:      {present}"),
        format!("Quorum:           {}", voters / 2 + 1),
    ];
    if let Some(epoch) = cluster["epoch"].as_str() {
        lines.push(format!("Epoch:            {epoch}"));
    }
    if let Some(leader) = cluster["leader"].as_str() {
        lines.push(format!("Leader:           {leader}"));
    }
    lines.join("\n")
}

/// The nodes as a table.
pub fn nodes(status: &Value) -> String {
    let list: Vec<Value> = of(status, "node").into_iter().cloned().collect();
    output::table(&list, &NODES)
}

fn of<'a>(status: &'a Value, kind: &str) -> Vec<&'a Value> {
    rows(status).iter().filter(|r| r["type"] == kind).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn votes_are_counted_as_pvecm_does() {
        let status = json!([
            {"type": "cluster", "name": "prod", "version": 7, "quorate": 1, "leader": "pve1"},
            {"type": "node", "name": "pve1", "online": 1, "votes": 1},
            {"type": "node", "name": "pve2", "online": 0, "votes": 1},
            {"type": "node", "name": "pve3", "online": 1, "votes": 1},
            {"type": "node", "name": "pve4", "online": 1, "votes": 0},
        ]);
        let text = information(&status);
        for line in [
            "Nodes:            4",
            "Expected votes:   3",
            "Total votes:      2",
            "Quorum:           2",
            "Quorate:          Yes",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        assert_eq!(information(&json!([])), "not in a cluster");
    }

    #[test]
    fn who_stands_in_the_way_of_a_better_cpu_is_named() {
        let common = serde_json::json!({
            "accel": "kvm", "cpu": "x86-64-v2-AES,flags=+pcid", "nodes": ["n1", "n2"], "vendors": ["GenuineIntel"],
            "lacking": {"x86-64-v3": {"n1": ["avx2", "fma"]}}, "unknown": ["n3"],
        });
        let page = super::cpu_page(&common);
        assert!(page.starts_with("cpu:    x86-64-v2-AES,flags=+pcid\nnodes:  n1, n2 (kvm)\n"), "{page}");
        assert!(
            page.ends_with("not x86-64-v3: node 'n1' lacks avx2, fma\nnothing is known yet of n3\n"),
            "{page}"
        );
    }
}
