//! Where a node stands: the failure domains that it shares with others, as far as administrators say so.

use crate::DomainName;
use serde::{Deserialize, Serialize};

/// A node's failure domains, at [`crate::paths::place`]. It is apart from the node's own record, which older versions write
/// anew without what they don't know.
///
/// Nodes of which nothing is said stand together, in a domain without a name.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// What is lost at once when a building, its power or its line is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub site: Option<DomainName>,
    /// What is lost at once when a rack's power or switch is. Racks of different sites are different ones, whatever their names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<DomainName>,
}

impl Place {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        self.site.is_none() && self.rack.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_whatever_it_lacks_or_has_beyond() {
        let read = |text: &str| serde_json::from_str::<Place>(text);
        let known = Place { site: Some("north".parse().unwrap()), rack: None };
        assert_eq!(serde_json::to_string(&known).unwrap(), r#"{"site":"north"}"#);
        assert_eq!(read(r#"{"site":"north","room":"7"}"#).unwrap(), known);
        assert!(read("{}").unwrap().is_empty() && read(r#"{"rack":"a b"}"#).is_err());
    }
}
