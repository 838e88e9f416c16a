//! `wrenn sandbox cp`: one file, streamed into or out of a sandbox.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::{fs, io::AsyncWriteExt as _};
use wrenn_api::SandboxId;
use wrenn_client::{Body, Client};

/// Where a file is.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Here(PathBuf),
    There(SandboxId, String),
}

fn place(text: &str) -> Result<Place> {
    // A colon alone says nothing: local names may have one.
    match text.split_once(':').map(|(id, path)| (id.parse(), path)) {
        Some((Ok(_), "")) => bail!("{text}: no path behind the colon"),
        Some((Ok(id), path)) => Ok(Place::There(id, path.to_owned())),
        _ => Ok(Place::Here(text.into())),
    }
}

/// Copies a file and says what was copied.
pub(super) async fn run(client: &Client, source: &str, destination: &str) -> Result<Value> {
    let bytes = match (place(source)?, place(destination)?) {
        (Place::Here(from), Place::There(id, path)) => upload(client, &from, id, path).await?,
        (Place::There(id, path), Place::Here(to)) => download(client, id, &path, to).await?,
        (Place::Here(_), Place::Here(_)) => {
            bail!("neither {source} nor {destination} is in a sandbox: write one as ID:PATH")
        }
        (Place::There(..), Place::There(..)) => bail!("both are in sandboxes: copy to a local file first"),
    };
    Ok(json!({ "source": source, "destination": destination, "bytes": bytes }))
}

async fn upload(client: &Client, from: &Path, id: SandboxId, mut path: String) -> Result<u64> {
    let name = || from.display();
    let file = fs::File::open(from).await.with_context(|| format!("cannot open {}", name()))?;
    let meta = file.metadata().await.with_context(|| format!("cannot look at {}", name()))?;
    ensure!(!meta.is_dir(), "{} is a directory: pack it with tar and copy that", name());
    if path.ends_with('/') {
        path.push_str(file_name(from)?);
    }
    client.write_file(id, &path, Body::from(file)).await?;
    Ok(meta.len())
}

fn file_name(path: &Path) -> Result<&str> {
    path.file_name().and_then(|name| name.to_str()).with_context(|| format!("{} has no name", path.display()))
}

async fn download(client: &Client, id: SandboxId, path: &str, mut to: PathBuf) -> Result<u64> {
    let mut pieces = client.read_file(id, path).await?;
    if to.is_dir() {
        to.push(file_name(Path::new(path))?);
    }
    let beside = beside(&to)?;
    let written = async {
        let mut file = fs::File::create_new(&beside).await?;
        let mut bytes = 0;
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            file.write_all(&piece).await?;
            bytes += piece.len() as u64;
        }
        file.flush().await?;
        fs::rename(&beside, &to).await?;
        anyhow::Ok(bytes)
    };
    match written.await {
        Ok(bytes) => Ok(bytes),
        Err(error) => {
            let _ = fs::remove_file(&beside).await;
            Err(error).with_context(|| format!("cannot copy to {}", to.display()))
        }
    }
}

/// A half of a file never has the file's name.
fn beside(path: &Path) -> Result<PathBuf> {
    let name = file_name(path)?;
    Ok(path.with_file_name(format!(".{name}.{}.part", std::process::id())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_id_before_the_colon_means_a_sandbox() -> Result<()> {
        let id = SandboxId::new();
        assert_eq!(place(&format!("{id}:/a:b"))?, Place::There(id, "/a:b".to_owned()));
        for local in ["a", "./a:b", "C:/x", "sb1:x", id.to_string().as_str()] {
            assert_eq!(place(local)?, Place::Here(local.into()));
        }
        assert!(place(&format!("{id}:")).is_err());
        Ok(())
    }

    #[tokio::test]
    async fn one_side_must_be_a_sandbox() -> Result<()> {
        let client = Client::new("http://127.0.0.1:1", None)?;
        let there = format!("{}:x", SandboxId::new());
        for (source, destination) in [("a", "b"), (there.as_str(), there.as_str())] {
            assert!(run(&client, source, destination).await.is_err());
        }
        Ok(())
    }
}
