//! The list of all endpoints.

use crate::backend::Backend;
use crate::framework::{Access, Index, Of, Registry};
use crate::{access, cluster, nodes, pools, storage, version};

/// Where indexes are: path, the key that names a child, who may.
const INDEXES: [(&str, &str, Access); 21] = [
    ("/access", "subdir", Access::Authenticated),
    ("/cluster", "name", Access::Authenticated),
    ("/cluster/bulk-action/guest", "name", Access::Authenticated),
    ("/cluster/bulk-action", "name", Access::Authenticated),
    ("/cluster/config", "name", Access::All("/", &["Sys.Audit"])),
    ("/cluster/ha", "id", Access::All("/", &["Sys.Audit"])),
    ("/cluster/ha/status", "name", Access::Authenticated),
    ("/cluster/mapping", "name", Access::Authenticated),
    ("/cluster/qemu", "name", Access::Authenticated),
    ("/nodes/{node}/capabilities/qemu", "name", Access::Authenticated),
    ("/nodes/{node}/capabilities", "name", Access::Authenticated),
    ("/nodes/{node}/certificates", "name", Access::Authenticated),
    ("/nodes/{node}/hardware/pci/{pci-id-or-mapping}", "method", Access::Authenticated),
    ("/nodes/{node}/hardware", "type", Access::Authenticated),
    ("/nodes/{node}", "name", Access::Authenticated),
    ("/nodes/{node}/qemu/{vmid}", "subdir", Access::Authenticated),
    ("/nodes/{node}/qemu/{vmid}/agent", "name", Access::Authenticated),
    ("/nodes/{node}/qemu/{vmid}/snapshot/{snapname}", "cmd", Access::Authenticated),
    ("/nodes/{node}/qemu/{vmid}/status", "subdir", Access::Authenticated),
    ("/nodes/{node}/storage/{storage}", "subdir", nodes::storage::LOOK),
    ("/nodes/{node}/tasks/{upid}", "name", Access::Authenticated),
];

/// Every endpoint.
pub fn registry() -> Registry<Backend> {
    let mut all = of_hardware(of_snapshots(at_nodes(of_cluster(Registry::default()))));
    for (path, key, access) in INDEXES {
        let children = all.children(path);
        all = all.with(Index::new(path, key, access, children));
    }
    all
}

/// What is the same on every node.
fn of_cluster(r: Registry<Backend>) -> Registry<Backend> {
    r.with(Of::<version::Version>::new())
        .with(Of::<access::Domains>::new())
        .with(Of::<access::ticket::Read>::new())
        .with(Of::<access::ticket::Create>::new())
        .with(Of::<access::password::Change>::new())
        .with(Of::<access::permissions::Read>::new())
        .with(Of::<access::tokens::List>::new())
        .with(Of::<access::tokens::Read>::new())
        .with(Of::<access::tokens::Create>::new())
        .with(Of::<access::tokens::Change>::new())
        .with(Of::<access::tokens::Remove>::new())
        .with(Of::<cluster::Status>::new())
        .with(Of::<cluster::Resources>::new())
        .with(Of::<cluster::Next>::new())
        .with(Of::<cluster::Tasks>::new())
        .with(Of::<cluster::Log>::new())
        .with(Of::<cluster::history::History>::new())
        .with(Of::<cluster::history::Show>::new())
        .with(Of::<cluster::history::Rollback>::new())
        .with(Of::<cluster::history::Status>::new())
        .with(Of::<cluster::history::Limit>::new())
        .with(Of::<cluster::history::Backup>::new())
        .with(Of::<cluster::options::Read>::new())
        .with(Of::<cluster::options::Change>::new())
        .with(Of::<cluster::config::Create>::new())
        .with(Of::<cluster::config::ApiVersion>::new())
        .with(Of::<cluster::config::ReadJoin>::new())
        .with(Of::<cluster::config::PostJoin>::new())
        .with(Of::<cluster::config::MakeToken>::new())
        .with(Of::<cluster::config::Nodes>::new())
        .with(Of::<cluster::config::AddNode>::new())
        .with(Of::<cluster::config::SetLinks>::new())
        .with(Of::<cluster::config::ReadLinks>::new())
        .with(Of::<cluster::config::Renew>::new())
        .with(Of::<cluster::qdevice::Read>::new())
        .with(Of::<cluster::config::RemoveNode>::new())
        .with(Of::<cluster::off::Confirm>::new())
        .with(Of::<cluster::epoch::Read>::new())
        .with(Of::<cluster::epoch::Expect>::new())
        .with(Of::<cluster::epoch::Rejoin>::new())
        .with(Of::<cluster::epoch::Asides>::new())
        .with(Of::<cluster::epoch::Forget>::new())
        .with(Of::<cluster::bulk::PostStart>::new())
        .with(Of::<cluster::bulk::PostShutdown>::new())
        .with(Of::<cluster::bulk::PostSuspend>::new())
        .with(Of::<cluster::bulk::PostMigrate>::new())
        .with(Of::<cluster::events::Read>::new())
        .with(Of::<cluster::ha::resources::List>::new())
        .with(Of::<cluster::ha::resources::Add>::new())
        .with(Of::<cluster::ha::resources::Read>::new())
        .with(Of::<cluster::ha::resources::Change>::new())
        .with(Of::<cluster::ha::resources::Remove>::new())
        .with(Of::<cluster::ha::resources::Migrate>::new())
        .with(Of::<cluster::ha::resources::Relocate>::new())
        .with(Of::<cluster::ha::rules::List>::new())
        .with(Of::<cluster::ha::rules::Add>::new())
        .with(Of::<cluster::ha::rules::Read>::new())
        .with(Of::<cluster::ha::rules::Change>::new())
        .with(Of::<cluster::ha::rules::Remove>::new())
        .with(Of::<cluster::ha::rules::Groups>::new())
        .with(Of::<cluster::ha::rules::Group>::new())
        .with(Of::<cluster::ha::fence::List>::new())
        .with(Of::<cluster::ha::fence::Add>::new())
        .with(Of::<cluster::ha::fence::Read>::new())
        .with(Of::<cluster::ha::fence::Change>::new())
        .with(Of::<cluster::ha::fence::Remove>::new())
        .with(Of::<cluster::ha::fence::Test>::new())
        .with(Of::<cluster::ha::profile::Read>::new())
        .with(Of::<cluster::ha::profile::Change>::new())
        .with(Of::<cluster::ha::status::Current>::new())
        .with(Of::<cluster::ha::what_if::Read>::new())
        .with(Of::<cluster::ha::resources::Stop>::new())
        .with(Of::<cluster::ha::resources::History>::new())
        .with(Of::<cluster::ha::status::Manager>::new())
        .with(Of::<cluster::ha::status::Disarm>::new())
        .with(Of::<cluster::ha::status::Arm>::new())
        .with(Of::<cluster::ha::status::Maintain>::new())
        .with(Of::<pools::List>::new())
        .with(Of::<storage::List>::new())
        .with(Of::<storage::Create>::new())
        .with(Of::<storage::Read>::new())
        .with(Of::<storage::Change>::new())
        .with(Of::<storage::Remove>::new())
}

/// What belongs to one node or guest.
fn at_nodes(r: Registry<Backend>) -> Registry<Backend> {
    r.with(Of::<nodes::List>::new())
        .with(Of::<nodes::Status>::new())
        .with(Of::<nodes::Power>::new())
        .with(Of::<nodes::Depart>::new())
        .with(Of::<nodes::Version>::new())
        .with(Of::<nodes::certificates::Info>::new())
        .with(Of::<nodes::bulk::PostStart>::new())
        .with(Of::<nodes::bulk::PostStop>::new())
        .with(Of::<nodes::bulk::PostSuspend>::new())
        .with(Of::<nodes::bulk::PostMigrate>::new())
        .with(Of::<nodes::tasks::List>::new())
        .with(Of::<nodes::tasks::Status>::new())
        .with(Of::<nodes::tasks::Log>::new())
        .with(Of::<nodes::tasks::Stop>::new())
        .with(Of::<nodes::storage::List>::new())
        .with(Of::<nodes::storage::Status>::new())
        .with(Of::<nodes::storage::content::List>::new())
        .with(Of::<nodes::storage::content::ImportMetadata>::new())
        .with(Of::<nodes::storage::content::Alloc>::new())
        .with(Of::<nodes::storage::content::Read>::new())
        .with(Of::<nodes::storage::content::Remove>::new())
        .with(Of::<nodes::storage::upload::Upload>::new())
        .with(Of::<nodes::qemu::List>::new())
        .with(Of::<nodes::qemu::Create>::new())
        .with(Of::<nodes::qemu::Remove>::new())
        .with(Of::<nodes::qemu::config::Read>::new())
        .with(Of::<nodes::qemu::config::Post>::new())
        .with(Of::<nodes::qemu::config::Put>::new())
        .with(Of::<nodes::qemu::config::Pending>::new())
        .with(Of::<nodes::qemu::disks::Grow>::new())
        .with(Of::<nodes::qemu::disks::Take>::new())
        .with(Of::<nodes::qemu::migrate::Ask>::new())
        .with(Of::<nodes::qemu::migrate::Post>::new())
        .with(Of::<nodes::qemu::migrate::Quick>::new())
        .with(Of::<nodes::qemu::remote::Post>::new())
        .with(Of::<nodes::qemu::remote::Open>::new())
        .with(Of::<nodes::qemu::remote::Channel>::new())
        .with(Of::<nodes::qemu::console::VncProxy>::new())
        .with(Of::<nodes::qemu::console::TermProxy>::new())
        .with(Of::<nodes::qemu::console::VncWebsocket>::new())
        .with(Of::<nodes::qemu::console::PostMonitor>::new())
        .with(Of::<nodes::qemu::console::SendKey>::new())
        .with(Of::<nodes::qemu::cloudinit::Read>::new())
        .with(Of::<nodes::qemu::cloudinit::Update>::new())
        .with(Of::<nodes::qemu::cloudinit::Dump>::new())
        .with(Of::<nodes::qemu::agent::Post>::new())
        .with(Of::<nodes::qemu::agent::Exec>::new())
        .with(Of::<nodes::qemu::agent::ExecStatus>::new())
        .with(Of::<nodes::qemu::agent::FileRead>::new())
        .with(Of::<nodes::qemu::agent::FileWrite>::new())
        .with(Of::<nodes::qemu::agent::Freeze>::new())
        .with(Of::<nodes::qemu::agent::Frozen>::new())
        .with(Of::<nodes::qemu::agent::Thaw>::new())
        .with(Of::<nodes::qemu::agent::Trim>::new())
        .with(Of::<nodes::qemu::agent::FileSystems>::new())
        .with(Of::<nodes::qemu::agent::HostName>::new())
        .with(Of::<nodes::qemu::agent::MemoryBlockInfo>::new())
        .with(Of::<nodes::qemu::agent::MemoryBlocks>::new())
        .with(Of::<nodes::qemu::agent::OsInfo>::new())
        .with(Of::<nodes::qemu::agent::Time>::new())
        .with(Of::<nodes::qemu::agent::TimeZone>::new())
        .with(Of::<nodes::qemu::agent::Users>::new())
        .with(Of::<nodes::qemu::agent::Cpus>::new())
        .with(Of::<nodes::qemu::agent::Info>::new())
        .with(Of::<nodes::qemu::agent::Interfaces>::new())
        .with(Of::<nodes::qemu::agent::Ping>::new())
        .with(Of::<nodes::qemu::agent::Password>::new())
        .with(Of::<nodes::qemu::agent::Shutdown>::new())
        .with(Of::<nodes::qemu::agent::SuspendDisk>::new())
        .with(Of::<nodes::qemu::agent::SuspendHybrid>::new())
        .with(Of::<nodes::qemu::agent::SuspendRam>::new())
        .with(Of::<nodes::qemu::status::Current>::new())
        .with(Of::<nodes::qemu::status::PostStart>::new())
        .with(Of::<nodes::qemu::status::PostStop>::new())
        .with(Of::<nodes::qemu::status::PostShutdown>::new())
        .with(Of::<nodes::qemu::status::PostReboot>::new())
        .with(Of::<nodes::qemu::status::PostReset>::new())
        .with(Of::<nodes::qemu::status::PostSuspend>::new())
        .with(Of::<nodes::qemu::status::PostResume>::new())
}

/// What nodes have of their own, and the cluster's names for it.
fn of_hardware(r: Registry<Backend>) -> Registry<Backend> {
    r.with(Of::<cluster::qemu::Common>::new())
        .with(Of::<cluster::qemu::Flags>::new())
        .with(Of::<cluster::qemu::List>::new())
        .with(Of::<cluster::qemu::Add>::new())
        .with(Of::<cluster::qemu::Read>::new())
        .with(Of::<cluster::qemu::Change>::new())
        .with(Of::<cluster::qemu::Remove>::new())
        .with(Of::<nodes::capabilities::Cpu>::new())
        .with(Of::<nodes::capabilities::Flags>::new())
        .with(Of::<nodes::capabilities::Machines>::new())
        .with(Of::<nodes::capabilities::Migration>::new())
        .with(Of::<nodes::hardware::Pci>::new())
        .with(Of::<nodes::hardware::Mdev>::new())
        .with(Of::<nodes::hardware::Usb>::new())
        .with(Of::<nodes::place::Read>::new())
        .with(Of::<nodes::place::Change>::new())
        .with(Of::<cluster::mapping::pci::List>::new())
        .with(Of::<cluster::mapping::pci::Add>::new())
        .with(Of::<cluster::mapping::pci::Read>::new())
        .with(Of::<cluster::mapping::pci::Change>::new())
        .with(Of::<cluster::mapping::pci::Remove>::new())
        .with(Of::<cluster::mapping::usb::List>::new())
        .with(Of::<cluster::mapping::usb::Add>::new())
        .with(Of::<cluster::mapping::usb::Read>::new())
        .with(Of::<cluster::mapping::usb::Change>::new())
        .with(Of::<cluster::mapping::usb::Remove>::new())
        .with(Of::<cluster::mapping::dir::List>::new())
        .with(Of::<cluster::mapping::dir::Add>::new())
        .with(Of::<cluster::mapping::dir::Read>::new())
        .with(Of::<cluster::mapping::dir::Change>::new())
        .with(Of::<cluster::mapping::dir::Remove>::new())
}

/// What VMs were, and what others are made of them.
fn of_snapshots(r: Registry<Backend>) -> Registry<Backend> {
    r.with(Of::<nodes::qemu::snapshot::List>::new())
        .with(Of::<nodes::qemu::snapshot::Take>::new())
        .with(Of::<nodes::qemu::snapshot::Remove>::new())
        .with(Of::<nodes::qemu::snapshot::ReadConfig>::new())
        .with(Of::<nodes::qemu::snapshot::PutConfig>::new())
        .with(Of::<nodes::qemu::snapshot::PostRollback>::new())
        .with(Of::<nodes::qemu::clone::Post>::new())
        .with(Of::<nodes::qemu::clone::PostTemplate>::new())
        .with(Of::<nodes::qemu::clone::ReadFeature>::new())
        .with(Of::<nodes::qemu::disks::Move>::new())
}
