//! A checksum in every row of every table: what the file says is what was written, or it is damage.
//!
//! SQLite notices damage to its structure. A byte that changes within a row would become part of a message, or of the name
//! that a row is found by. So each row has a `sum` over its values, made and compared in SQL by the function below; the
//! journal has checksums of its own, and the WAL those of SQLite.
//!
//! A value enters as its type, its length and its bytes. CRC-32 finds every change of up to 32 bits in a row, and of others
//! all but one in four thousand million. As a signed 32-bit number it is four bytes in the file.

use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Result};

/// Makes `ferrule_sum(value, ...)` known to a connection.
pub(crate) fn register(conn: &Connection) -> Result<()> {
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
    conn.create_scalar_function("ferrule_sum", -1, flags, sum)
}

fn sum(values: &Context<'_>) -> Result<i64> {
    let mut crc = crc32fast::Hasher::new();
    for i in 0..values.len() {
        match values.get_raw(i) {
            ValueRef::Null => crc.update(&[0]),
            ValueRef::Integer(n) => crc.update(&tagged(1, n.to_le_bytes())),
            ValueRef::Real(x) => crc.update(&tagged(2, x.to_le_bytes())),
            ValueRef::Text(bytes) => blob(&mut crc, 3, bytes),
            ValueRef::Blob(bytes) => blob(&mut crc, 4, bytes),
        }
    }
    Ok(i64::from(crc.finalize().cast_signed()))
}

/// In one piece: each update has a price of its own.
fn tagged(kind: u8, number: [u8; 8]) -> [u8; 9] {
    let mut bytes = [kind; 9];
    bytes[1..].copy_from_slice(&number);
    bytes
}

fn blob(crc: &mut crc32fast::Hasher, kind: u8, bytes: &[u8]) {
    crc.update(&tagged(kind, (bytes.len() as u64).to_le_bytes()));
    crc.update(bytes);
}
