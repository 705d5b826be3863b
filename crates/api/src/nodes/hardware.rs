//! `/nodes/{node}/hardware`: devices that a node could give to guests.

use super::OneNode;
use crate::framework::{Access, Json};
use stead_api_derive::Params;
use stead_model::NodeName;
use stead_ops::hardware::{MdevView, PciView, UsbView};

#[derive(Params)]
pub struct ListPci {
    /// The node.
    node: NodeName,
    /// Classes that are left out, by their first digits: memory, bridges and processors.
    #[param(name = "pci-class-blacklist", default = "05;06;0b")]
    without: String,
    /// Say more than addresses.
    #[param(default = "1")]
    verbose: bool,
}

#[derive(Params)]
pub struct OneDevice {
    /// The node.
    node: NodeName,
    /// An address, `0000:01:00.0`, or a mapping of PCI devices.
    #[param(name = "pci-id-or-mapping")]
    device: String,
}

const LOOK: Access = Access::Any("/", &["Sys.Audit", "Sys.Modify"]);

endpoint! {
    /// A node's PCI devices.
    Pci = get("/nodes/{node}/hardware/pci"), AtNode, LOOK;
    fn call(cx, p: ListPci) -> Json<Vec<PciView>> {
        cx.ops().member(&p.node)?;
        let without: Vec<String> = stead_model::text::split_list(&p.without).map(str::to_owned).collect();
        Ok(Json(cx.ops().pci_devices(&without, p.verbose).await))
    }
}

endpoint! {
    /// The kinds of mediated devices that a PCI device can make.
    Mdev = get("/nodes/{node}/hardware/pci/{pci-id-or-mapping}/mdev"), AtNode, LOOK;
    fn call(cx, p: OneDevice) -> Json<Vec<MdevView>> {
        cx.ops().member(&p.node)?;
        Ok(Json(cx.ops().mdev_types(&p.device).await?))
    }
}

endpoint! {
    /// A node's USB devices, hubs too.
    Usb = get("/nodes/{node}/hardware/usb"), AtNode, Access::All("/", &["Sys.Modify"]);
    fn call(cx, p: OneNode) -> Json<Vec<UsbView>> {
        cx.ops().member(&p.node)?;
        Ok(Json(cx.ops().usb_devices().await))
    }
}
