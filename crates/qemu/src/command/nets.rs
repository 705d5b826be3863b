//! Network devices: the guest's card, and the host's end of it.

use super::part::Part;
use super::{Hardware, NetPlan, boot_index, unusable};
use serde_json::json;
use stead_driver::guest::GuestError;
use stead_model::vmconfig::{Net, NetModel};

/// The card's id; its host's end has the option's name.
fn card(key: &str) -> String {
    format!("{key}-dev")
}

/// All of them.
pub(super) fn parts(hw: &Hardware<'_>) -> Result<Vec<Part>, GuestError> {
    let nets = hw.settings.nets().map_err(unusable)?;
    let mut parts = vec![];
    for (net, plan) in nets.iter().zip(hw.nets) {
        parts.push(host_end(net, plan));
        parts.push(device(hw, net, plan)?);
    }
    Ok(parts)
}

fn host_end(net: &Net, plan: &NetPlan) -> Part {
    let key = net.key.as_str();
    match plan {
        NetPlan::Tap { ifname, vhost, .. } => {
            let tap = Part::netdev("tap", key).with("ifname", ifname.as_str());
            let tap = tap.with("script", "no").with("downscript", "no").maybe("queues", net.queues);
            tap.maybe("vhost", vhost.then_some(true))
        }
        NetPlan::User { forward } => {
            let rules = forward.as_ref().map(|rule| json!([{ "str": rule }]));
            Part::netdev("user", key).maybe("hostfwd", rules)
        }
    }
}

fn device(hw: &Hardware<'_>, net: &Net, plan: &NetPlan) -> Result<Part, GuestError> {
    let key = &net.key;
    let driver = match net.model {
        NetModel::Virtio => "virtio-net-pci",
        NetModel::Ne2kIsa => "ne2k_isa",
        other => other.as_str(),
    };
    let mtu = match (net.mtu, plan) {
        (Some(1), NetPlan::Tap { mtu, .. }) => Some(*mtu),
        (mtu, _) => mtu,
    };
    let device = Part::device(driver, card(key))
        .with("netdev", key.as_str())
        .maybe("mac", net.mac.clone())
        .maybe("mq", net.queues.map(|_| true))
        // An interrupt for each queue of either direction, one for its control, one for changes of its configuration.
        .maybe("vectors", net.queues.map(|n| 2 * n + 2))
        .maybe("host_mtu", mtu);
    Ok(match net.model {
        NetModel::Ne2kIsa => device,
        _ => device.at(hw.chipset.net(net.index)).maybe("bootindex", boot_index(hw.settings, key)?),
    })
}
