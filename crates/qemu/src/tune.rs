//! What a running process can be told of its configuration without a device coming or going: limits of disks, links of network
//! devices, the balloon's target, how long it may stand still when it moves. A start tells it the same. What the kernel does for it
//! instead (its share of the CPUs, the bridge and the limit of a network device) is not said here.

use crate::command::{refuse, unusable};
use serde_json::{Map, Value, json};
use stead_driver::guest::GuestError;
use stead_model::vmconfig::{Bus, Disk, Limits, Settings};

/// How long QEMU lets a guest stand still at the end of a migration unless told otherwise, in seconds.
const DOWNTIME: f64 = 0.3;

/// The command that carries out what an option says.
pub fn command(settings: &Settings, key: &str) -> Result<(&'static str, Value), GuestError> {
    if key == "balloon" {
        let memory = settings.memory().map_err(unusable)?;
        let target = settings.balloon().map_err(unusable)?.filter(|t| t.0 > 0).unwrap_or(memory);
        return Ok(("balloon", json!({ "value": target.min(memory).0 << 20 })));
    }
    if key == "migrate_downtime" {
        let seconds = settings.migrate_downtime().map_err(unusable)?.unwrap_or(DOWNTIME);
        // In whole milliseconds, which the option's range fits.
        let limit = (seconds * 1000.0).round() as u64;
        return Ok(("migrate-set-parameters", json!({ "downtime-limit": limit })));
    }
    if let Some(net) = settings.nets().map_err(unusable)?.iter().find(|n| n.key == key) {
        return Ok(("set_link", json!({ "name": key, "up": !net.link_down })));
    }
    match settings.disks().map_err(unusable)?.iter().find(|d| d.key == key && !d.cdrom) {
        Some(disk) => Ok(("block_set_io_throttle", limits(disk)?)),
        None => refuse(key, "nothing of it can be changed while the VM runs"),
    }
}

/// The options of which a process must be told after it has begun, since no argument says so.
pub fn after_start(settings: &Settings) -> Result<Vec<String>, GuestError> {
    let nets = settings.nets().map_err(unusable)?.into_iter().filter(|n| n.link_down).map(|n| n.key);
    let mut keys: Vec<String> = nets.collect();
    keys.extend(settings.get("migrate_downtime").map(|_| "migrate_downtime".to_owned()));
    for disk in settings.disks().map_err(unusable)?.into_iter().filter(|d| !d.cdrom) {
        if !disk.details().map_err(unusable)?.limits.is_none() {
            keys.push(disk.key);
        }
    }
    Ok(keys)
}

fn limits(disk: &Disk) -> Result<Value, GuestError> {
    // The device of a VirtIO disk is in two parts, of which the back one has the disk.
    let id = match disk.bus {
        Bus::Virtio => format!("/machine/peripheral/{}/virtio-backend", disk.key),
        _ => disk.key.clone(),
    };
    let mut arguments = Map::from_iter([("id".to_owned(), json!(id))]);
    let Limits { bytes, operations } = disk.details().map_err(unusable)?.limits;
    for (name, rates) in [("bps", bytes), ("iops", operations)] {
        for (suffix, rate) in [("", rates.total), ("_rd", rates.read), ("_wr", rates.write)] {
            arguments.insert(format!("{name}{suffix}"), json!(rate.sustained));
            if rate.burst > 0 {
                arguments.insert(format!("{name}{suffix}_max"), json!(rate.burst));
                arguments.insert(format!("{name}{suffix}_max_length"), json!(rate.burst_seconds.max(1)));
            }
        }
    }
    Ok(arguments.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_model::vmconfig::VmConfig;

    #[test]
    fn each_option_has_its_command() {
        let text = "balloon: 128\nmemory: 256\nnet0: virtio,link_down=1\nnet1: virtio\n\
                    scsi1: local:100/a.raw,mbps_wr=1,mbps_wr_max=2,bps_wr_max_length=3\nvirtio1: local:100/b.raw\n\
                    ide2: none,media=cdrom,iops=5\n";
        let settings = VmConfig::parse(text).unwrap().current;
        let of = |key: &str| command(&settings, key).unwrap();
        assert_eq!(of("balloon"), ("balloon", json!({ "value": 128 << 20 })));
        assert_eq!(of("net0"), ("set_link", json!({ "name": "net0", "up": false })));
        assert_eq!(of("net1"), ("set_link", json!({ "name": "net1", "up": true })));
        let scsi = json!({ "id": "scsi1", "bps": 0, "bps_rd": 0, "bps_wr": 1 << 20, "bps_wr_max": 2 << 20,
            "bps_wr_max_length": 3, "iops": 0, "iops_rd": 0, "iops_wr": 0 });
        assert_eq!(of("scsi1"), ("block_set_io_throttle", scsi));
        assert_eq!(of("virtio1").1["id"], "/machine/peripheral/virtio1/virtio-backend");
        assert!(command(&settings, "scsi7").is_err());
        assert_eq!(of("migrate_downtime").1["downtime-limit"], 300);
        let short = VmConfig::parse("migrate_downtime: 0.05\n").unwrap().current;
        assert_eq!(after_start(&short).unwrap(), ["migrate_downtime"]);
        let told = command(&short, "migrate_downtime").unwrap();
        assert_eq!(told, ("migrate-set-parameters", json!({ "downtime-limit": 50 })));
        assert_eq!(after_start(&settings).unwrap(), ["net0", "scsi1"]);
        let full = VmConfig::parse("memory: 256\n").unwrap().current;
        assert_eq!(command(&full, "balloon").unwrap().1["value"], 256 << 20);
    }
}
