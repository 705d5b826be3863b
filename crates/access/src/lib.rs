//! Who somebody is and what they may do: realms, users, tokens, roles, ACLs, tickets.
//!
//! Nothing here reads a clock, a file or the configuration: the time, random bytes, and the texts of
//! `user.cfg` and of the two stores of hashes are given. Every node reaches the same answer from the
//! same configuration, so a ticket made by one is good on all.
//!
//! - [`ticket`]: what is shown instead of a password, for two hours;
//! - [`secret`]: passwords and tokens, hashed at rest, and the [`Realm`]s that check passwords;
//! - [`brake`]: how long the next check of a password waits after wrong ones;
//! - [`privilege`], [`roles`]: what there is to be allowed;
//! - [`directory`]: users, groups, tokens, pools and ACLs, and what follows from them.

pub mod auth;
pub mod brake;
pub mod directory;
pub mod privilege;
pub mod roles;
pub mod secret;
pub mod ticket;

pub use auth::AuthId;
pub use brake::{Brake, Verdict};
pub use directory::{Directory, Privileges};
pub use privilege::{Privilege, PrivilegeSet};
pub use secret::{AuthError, Builtin, Realm, ShadowStore, Stamps, TokenStore};
pub use ticket::{Keyring, TicketError, UsedTickets};
