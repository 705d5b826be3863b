//! What the load and Stead's nodes say to each other: requests and answers with a number, many at once on one connection, as gRPC
//! does. Each is its length (4 bytes), its number (8), a letter, and the rest.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

pub const PUT: u8 = b'p';
pub const READ: u8 = b'r';
pub const FRESH: u8 = b'f';
pub const WATCH: u8 = b'w';
pub const LEADS: u8 = b'l';
pub const GROW: u8 = b'g';
pub const OK: u8 = b'+';
pub const FAILED: u8 = b'-';

pub type Message = (u64, u8, Bytes);

/// The next one; none at the end.
pub async fn next(from: &mut OwnedReadHalf, buffer: &mut BytesMut) -> Option<Message> {
    loop {
        if buffer.len() >= 4 {
            let len = u32::from_be_bytes(*buffer.first_chunk().unwrap()) as usize;
            if buffer.len() >= 4 + len {
                buffer.advance(4);
                let mut message = buffer.split_to(len).freeze();
                return Some((message.get_u64(), message.get_u8(), message));
            }
        }
        buffer.reserve(64 << 10);
        if from.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}

/// Writes what comes by the channel, as much at once as there is.
pub async fn write(mut to: OwnedWriteHalf, mut messages: mpsc::UnboundedReceiver<Message>) {
    let mut buffer = BytesMut::new();
    while let Some(first) = messages.recv().await {
        let mut message = Some(first);
        while let Some((number, kind, rest)) = message {
            buffer.put_u32(9 + rest.len() as u32);
            buffer.put_u64(number);
            buffer.put_u8(kind);
            buffer.put_slice(&rest);
            message = if buffer.len() < 256 << 10 { messages.try_recv().ok() } else { None };
        }
        if to.write_all_buf(&mut buffer).await.is_err() {
            return;
        }
    }
}

/// A key and a value, as one.
pub fn pair(key: &str, value: &[u8]) -> Bytes {
    let mut all = BytesMut::with_capacity(2 + key.len() + value.len());
    all.put_u16(key.len() as u16);
    all.put_slice(key.as_bytes());
    all.put_slice(value);
    all.freeze()
}

/// The two again.
pub fn split(mut all: Bytes) -> (String, Bytes) {
    let len = usize::from(all.get_u16());
    (String::from_utf8(all.split_to(len).to_vec()).unwrap(), all)
}
