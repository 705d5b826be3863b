//! How [`Bytes`] are written by serde: as a byte string, shared on reading without a feature of the `bytes` crate.

use bytes::Bytes;
use serde::{Deserializer, Serializer, de};
use std::fmt;

/// Writes a byte string.
pub(crate) fn serialize<S: Serializer>(data: &Bytes, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_bytes(data)
}

/// Reads a byte string.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Bytes, D::Error> {
    struct Visitor;

    impl de::Visitor<'_> for Visitor {
        type Value = Bytes;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a byte string")
        }

        fn visit_bytes<E: de::Error>(self, data: &[u8]) -> Result<Bytes, E> {
            Ok(Bytes::copy_from_slice(data))
        }

        fn visit_byte_buf<E: de::Error>(self, data: Vec<u8>) -> Result<Bytes, E> {
            Ok(data.into())
        }
    }

    input.deserialize_byte_buf(Visitor)
}

/// The same for an optional byte string.
pub(crate) mod option {
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Wrapped(#[serde(with = "super")] Bytes);

    /// Writes it.
    pub(crate) fn serialize<S: Serializer>(data: &Option<Bytes>, out: S) -> Result<S::Ok, S::Error> {
        data.clone().map(Wrapped).serialize(out)
    }

    /// Reads it.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Bytes>, D::Error> {
        Ok(Option::<Wrapped>::deserialize(input)?.map(|w| w.0))
    }
}
