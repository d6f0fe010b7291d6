//! `cluster.hocon` out of what `emqx ctl data export` writes: a `tar.gz` of one folder.

use std::io::{self, Read};

use flate2::read::GzDecoder;

use super::MAX_FILE;

/// The most that is inflated: the database's tables come along and may be large, a bomb is larger.
const MAX_INFLATED: u64 = 4 << 30;

/// The configuration in an export; `None`: there is none in it.
///
/// # Errors
/// When it is no `tar.gz`, is cut off, or holds too much.
pub(super) fn cluster_hocon(export: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let mut archive = tar::Archive::new(GzDecoder::new(export).take(MAX_INFLATED));
    for entry in archive.entries()? {
        let mut entry = entry?;
        if entry.path()?.file_name().is_none_or(|name| name != "cluster.hocon") {
            continue;
        }
        if entry.size() > MAX_FILE as u64 {
            return Err(io::Error::other(format!("cluster.hocon has more than {} MiB", MAX_FILE >> 20)));
        }
        let mut text = Vec::new();
        entry.read_to_end(&mut text)?;
        return Ok(Some(text));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn export(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, data) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            archive.append_data(&mut header, name, *data).expect("a file");
        }
        let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
        gz.write_all(&archive.into_inner().expect("an archive")).expect("compressed");
        gz.finish().expect("compressed")
    }

    #[test]
    fn the_configuration_is_found_in_its_folder() {
        let whole = export(&[
            ("emqx-export-2026-11-29-08-00-00.000/META.hocon", b"version = 1"),
            ("emqx-export-2026-11-29-08-00-00.000/cluster.hocon", b"a = 1"),
        ]);
        assert_eq!(cluster_hocon(&whole).expect("an export").as_deref(), Some(&b"a = 1"[..]));
        assert_eq!(cluster_hocon(&export(&[("x/other", b"")])).expect("an archive"), None);
        assert!(cluster_hocon(&whole[..whole.len() / 2]).is_err());
        assert!(cluster_hocon(b"\x1f\x8bnothing").is_err());
    }
}
