//! Directories of the host that a guest mounts.

use super::part::Part;
use super::pci::Chipset;
use super::{Argv, Context, refuse, unusable};
use stead_driver::guest::GuestError;

/// Each is a card, with its other end in the program that carries it.
pub(super) fn add(argv: &mut Argv, cx: &Context<'_>, chipset: Chipset) -> Result<(), GuestError> {
    let all = cx.settings.virtiofs().map_err(unusable)?;
    if let Some(share) = all.first().filter(|_| cx.incoming.is_some()) {
        let why = "what a guest has open of it is not in the memory that comes: it can't go on with it";
        return refuse(&share.key, why);
    }
    for share in &all {
        let socket = super::path(&cx.dir.share(share.index))?;
        argv.option("-chardev", format!("socket,id=char-{},path={socket}", share.key));
        argv.part(
            &Part::device("vhost-user-fs-pci", share.key.as_str())
                .with("chardev", format!("char-{}", share.key))
                .with("tag", share.dirid.as_str())
                .with("queue-size", 1024)
                .at(chipset.virtiofs(share.index)),
        );
    }
    Ok(())
}
