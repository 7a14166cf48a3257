//! Values as Redis keeps them: a version, a checksum and a message. What another version wrote, or what has rotted, is
//! known for what it is and never decoded.

use bytes::Bytes;
use prost::Message;
use sha2::{Digest, Sha256};
use thiserror::Error;

/// Of this format and of all messages in it.
const VERSION: &[u8; 4] = b"SDX1";
const CHECKSUM_BYTES: usize = 8;
const HEADER_BYTES: usize = VERSION.len() + CHECKSUM_BYTES;

/// Why a value is of no use.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// It was written by another version, or is none of ours.
    #[error("it is of another version")]
    Version,
    /// Its bytes are not those that were written, or those of another kind of value.
    #[error("its checksum does not fit")]
    Checksum,
    /// The checksum fits, but what it covers is no such message.
    #[error("it is not the message that it should be")]
    Message,
}

/// `message` as a value. `kind` goes into the checksum, so that a value never passes for one of another kind.
pub(crate) fn seal(kind: &str, message: &impl Message) -> Vec<u8> {
    let mut value = Vec::with_capacity(HEADER_BYTES + message.encoded_len());
    value.extend_from_slice(VERSION);
    value.extend_from_slice(&[0; CHECKSUM_BYTES]);
    // A vector grows as it must.
    let _ = message.encode(&mut value);
    let checksum = checksum(kind, &value[HEADER_BYTES..]);
    value[VERSION.len()..HEADER_BYTES].copy_from_slice(&checksum);
    value
}

/// The message in a value; its bytes are shared with the value and not copied.
///
/// # Errors
/// [`Unreadable`]
pub(crate) fn open<M: Message + Default>(kind: &str, value: &Bytes) -> Result<M, Unreadable> {
    let header = value.get(..HEADER_BYTES).ok_or(Unreadable::Version)?;
    let (version, said) = header.split_at(VERSION.len());
    if version != VERSION {
        return Err(Unreadable::Version);
    }
    let payload = value.slice(HEADER_BYTES..);
    if said != checksum(kind, &payload) {
        return Err(Unreadable::Checksum);
    }
    M::decode(payload).map_err(|_| Unreadable::Message)
}

fn checksum(kind: &str, payload: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash = Sha256::new().chain_update(kind).chain_update([0]).chain_update(payload).finalize();
    let mut checksum = [0; CHECKSUM_BYTES];
    checksum.copy_from_slice(&hash[..CHECKSUM_BYTES]);
    checksum
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdxl_proto::v1::Size;

    const SIZE: Size = Size { height: 64, width: 96 };

    #[test]
    fn what_was_sealed_opens() {
        assert_eq!(open::<Size>("size", &seal("size", &SIZE).into()), Ok(SIZE));
    }

    #[test]
    fn what_is_foreign_or_rotten_is_known_as_such() {
        let value = seal("size", &SIZE);
        for place in 0..value.len() {
            let mut spoilt = value.clone();
            spoilt[place] ^= 1;
            let expected = if place < VERSION.len() { Unreadable::Version } else { Unreadable::Checksum };
            assert_eq!(open::<Size>("size", &spoilt.into()), Err(expected), "byte {place}");
        }
        for length in 0..value.len() {
            assert!(open::<Size>("size", &value[..length].to_vec().into()).is_err(), "{length} bytes");
        }
        assert_eq!(open::<Size>("picture", &value.into()), Err(Unreadable::Checksum));
        let other = seal("size", &"text".to_owned());
        assert_eq!(open::<Size>("size", &other.into()), Err(Unreadable::Message));
    }
}
