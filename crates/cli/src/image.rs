// SPDX-License-Identifier: Apache-2.0
//! `wrenn image`: images that are uploaded, and those of registries that hosts have.

use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal as _, Read, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use wrenn_api::Image;
use wrenn_client::{Body, Client};
use wrenn_recipe::UploadedImage;

use crate::{
    output::{self, Format, time},
    pieces::written,
    progress::Counter,
};

/// Text after the help of `wrenn image load`.
const EXAMPLES: &str = "\
Examples:
  docker save app:1 | wrenn image load         upload an image of Docker under its name
  wrenn image load -i app.tar.gz app:2         one of a file, under another name
  wrenn run --image uploaded:app:1             run it";
/// Name of standard input.
const STDIN: &str = "-";
/// Bytes that are sent at once.
const PIECE: usize = 256 << 10;

/// Subcommands of `wrenn image`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Upload an image, an OCI layout or what `docker save` writes, and print its reference
    #[command(after_help = EXAMPLES)]
    Load {
        /// The archive: tar, also compressed with gzip or zstd; - for standard input
        #[arg(long, short = 'i', value_name = "FILE", default_value = STDIN)]
        input: PathBuf,
        /// Name of the image; which one it is, if the archive has several [default: the name in the archive]
        #[arg(value_name = "NAME[:TAG]", value_parser = name)]
        name: Option<UploadedImage>,
    },
    /// List the images that were uploaded, and those of registries that hosts have
    #[command(visible_alias = "list")]
    Ls,
    /// Remove images that were uploaded
    #[command(visible_alias = "delete")]
    Rm {
        /// The images' names
        #[arg(required = true, value_name = "NAME[:TAG]", value_parser = name)]
        names: Vec<UploadedImage>,
    },
}

/// Runs `wrenn image`.
pub(crate) async fn run(client: &Client, what: &Command, format: Format) -> Result<u8> {
    match what {
        Command::Load { input, name } => {
            let image = load(client, input, name.as_ref()).await?;
            format.print(&image, || image.reference.clone())?;
        }
        Command::Ls => {
            let all = client.list_images().await?;
            format.print(&all, || table(&all))?;
        }
        Command::Rm { names } => {
            let names: Vec<_> = names.iter().map(ToString::to_string).collect();
            for name in &names {
                client.delete_image(name).await?;
            }
            format.print(&json!({ "removed": names }), || names.join("\n"))?;
        }
    }
    Ok(0)
}

/// Parses the name of an image, also with what makes it a reference.
fn name(text: &str) -> Result<UploadedImage, String> {
    let parsed = UploadedImage::of_reference(text).unwrap_or_else(|| text.parse());
    parsed.map_err(|error| error.to_string())
}

async fn load(client: &Client, input: &Path, name: Option<&UploadedImage>) -> Result<Image> {
    let (mut archive, size) = opened(input)?;
    let (pieces, work) = written(Counter::new(size), move |sink| {
        let mut sink = BufWriter::with_capacity(PIECE, sink);
        io::copy(&mut archive, &mut sink)?;
        sink.flush()
    });
    let name = name.map(ToString::to_string);
    let loaded = client.load_image(name.as_deref(), Body::wrap_stream(pieces)).await;
    if loaded.is_err() && work.is_finished() {
        // Why it broke off here says more than that it did. If the server refused it, this was only told that.
        match work.await? {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                return Err(error).with_context(|| format!("cannot read {}", input.display()));
            }
            _ => {}
        }
    }
    Ok(loaded?)
}

/// Opens an archive; returns its size, if it is known.
fn opened(input: &Path) -> Result<(Box<dyn Read + Send>, Option<u64>)> {
    if input == Path::new(STDIN) {
        let stdin = io::stdin();
        ensure!(
            !stdin.is_terminal(),
            "standard input is a terminal: name a file by -i, or send an archive to it"
        );
        return Ok((Box::new(stdin), None));
    }
    let reading = || format!("cannot read {}", input.display());
    let file = File::open(input).with_context(reading)?;
    let metadata = file.metadata().with_context(reading)?;
    ensure!(!metadata.is_dir(), "{} is a directory: pack it (`tar -C DIRECTORY -c .`)", input.display());
    Ok((Box::new(file), metadata.is_file().then_some(metadata.len())))
}

fn table(all: &[Image]) -> String {
    let rows = all.iter().map(|image| {
        [
            image.reference.clone(),
            image.digest.trim_start_matches("sha256:").chars().take(12).collect(),
            format!("{} MiB", image.size_mb),
            image.hosts.len().to_string(),
            time(image.last_used_at),
        ]
    });
    output::table(["REFERENCE", "DIGEST", "SIZE", "HOSTS", "LAST USED"], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_listed_with_their_hosts() {
        let value = json!([{"reference": "uploaded:app:1", "uploaded": true, "digest": format!("sha256:{}", "0a".repeat(32)),
            "size_mb": 117, "hosts": [], "last_used_at": "2026-01-31T09:30:00Z"}]);
        let all: Vec<Image> = serde_json::from_value(value).expect("images");
        let text = table(&all);
        let words: Vec<_> = text.lines().nth(1).unwrap_or_default().split_whitespace().collect();
        assert_eq!(words[..5], ["uploaded:app:1", "0a0a0a0a0a0a", "117", "MiB", "0"]);
    }

    #[test]
    fn a_name_may_be_a_reference() {
        for (text, expected) in [("app", "app:latest"), ("app:1", "app:1"), ("uploaded:app:1", "app:1")] {
            assert_eq!(name(text).map(|name| name.to_string()).as_deref(), Ok(expected));
        }
        assert!(name("team/app").is_err_and(|told| told.contains("NAME[:TAG]")));
    }

    #[test]
    fn what_is_no_archive_is_refused_before_it_is_sent() {
        let told =
            |path: &str| opened(Path::new(path)).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(told("/").contains("is a directory") && told("/does/not/exist").contains("cannot read"));
    }
}
