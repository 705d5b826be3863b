//! What a change of a configuration is called in the history: the options that it concerns, never their values, which
//! may be secrets.

use stead_model::Vmid;
use stead_model::vmconfig::{Settings, VmConfig};

fn changed(before: &Settings, after: &Settings) -> Vec<String> {
    let now = after.iter().filter(|(k, v)| before.get(k) != Some(*v)).map(|(k, _)| k.to_owned());
    let gone = before.iter().filter(|(k, _)| after.get(k).is_none()).map(|(k, _)| format!("{k} removed"));
    now.chain(gone).collect()
}

/// The change in words.
pub fn said(vmid: Vmid, before: &VmConfig, after: &VmConfig) -> String {
    let mut what = changed(&before.current, &after.current);
    let waits = changed(&before.pending.set, &after.pending.set);
    what.extend(waits.into_iter().map(|k| format!("{k} (at the next start)")));
    let news = after.pending.delete.keys().filter(|k| !before.pending.delete.contains_key(*k));
    what.extend(news.map(|k| format!("{k} removed (at the next start)")));
    if before.special != after.special {
        what.push("what its cloud-init drive holds".to_owned());
    }
    match what.is_empty() {
        true => format!("VM {vmid}: configuration written anew"),
        false => format!("VM {vmid}: {}", what.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_names_its_options_and_no_value() {
        let parse = |text: &str| VmConfig::parse(text).unwrap();
        let vmid = Vmid::new(201).unwrap();
        let before = parse("cores: 1\nide2: none,media=cdrom\nname: web\n");
        let after = parse("cores: 2\nname: web\nonboot: 1\n\n[PENDING]\nmemory: 512\ndelete: name\n");
        assert_eq!(
            said(vmid, &before, &after),
            "VM 201: cores, onboot, ide2 removed, memory (at the next start), name removed (at the next start)"
        );
        let held = parse(&format!("{after}\n[special:cloudinit]\ncipassword: $6$secret\n"));
        assert_eq!(said(vmid, &after, &held), "VM 201: what its cloud-init drive holds");
        assert_eq!(said(vmid, &after, &after), "VM 201: configuration written anew");
    }
}
