// SPDX-License-Identifier: Apache-2.0
//! Images that cases use, made with umoci: each shows with its entrypoint what it has.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rustix::fs::{XattrFlags, setxattr};
use wrenn_testkit::oci_images::{BUSYBOX, MAY_BIND, every_kind, put, tool};

/// Names of busybox in the images that have a shell.
const LINKS: [&str; 8] = ["cat", "echo", "id", "ls", "mkdir", "sh", "sleep", "true"];
/// What the first image runs: it tells what it has.
const GREET: &str = "#!/bin/sh
echo \"$(id -u) $PWD $MODE: $*\"
cat kept
[ -e old ] || echo the old one is gone
[ kept -ef linked ] && echo linked
busybox stat -c %a suid
/bin/httpd -p 127.0.0.1:80 -h /srv && busybox wget -q -O - http://127.0.0.1/kept
busybox httpd -p 127.0.0.1:81 -h /srv 2> /dev/null || echo no capability
ls /bin/bash /usr/bin/sudo 2> /dev/null
exit 7
";
pub(super) const GREETED: &str =
    "1000 /srv test: x y\nkept\nthe old one is gone\nlinked\n4755\nkept\nno capability\n";
/// Looks at the image with every kind of entry.
pub(super) const LOOK: &str = "cd /srv
for name in gone gone-directory opaque/gone opaque/deep to-link/deep; do [ -e $name ] && echo $name is there; done
echo $(busybox cat opaque/new merged/low merged/high to-link/high to-file replaced) $(busybox cat d*/e*/f* odd*)
[ tool -ef /bin/tool ] && [ second -ef /bin/second ] && echo linked
busybox stat -c '%a %u:%g %F' /bin/suid /bin/sgid merged replaced pipe null disk
busybox readlink nowhere
[ $(busybox stat -c %b sparse) -lt 2048 ] && busybox stat -c %s sparse
";
pub(super) const SEEN: &str = "newlowhighhighfilereplaced longodd
linked
4755 0:0 regular file
2755 0:42 regular file
2700 7:8 directory
4711 7:8 regular file
620 0:0 fifo
666 0:0 character special file
660 0:0 block special file
/does/not/exist
16777216
";
/// The entrypoint of a server's image: as root it gives the data to the user of the server, goes on as that, and becomes what it is
/// given.
const ENTER: &str = "#!/bin/sh
set -e
if [ \"$(id -u)\" = 0 ]; then
    mkdir -p \"$DATA\"
    busybox chown app:app \"$DATA\"
    exec busybox start-stop-daemon -S -c app:app -x \"$0\" -- \"$@\"
fi
echo ready > \"$DATA/state\"
exec \"$@\"
";
/// What it is given by its image, and what that prints.
const SERVE: &str = "echo \"$(id -un) $(cat $DATA/state) $(busybox stat -c %U:%a $DATA) $*\"";
pub(super) const SERVED: &str = "app ready app:755 one two words\n";

/// Makes all images in the layout `oci` of a directory: the first one as `1`, and the same for another processor as `s390x`; `kinds`
/// with every kind of entry; `bare`, which is one program, and the same with a user that it lacks as `ghost`; and `server`.
pub(super) fn make(dir: &Path) -> Result<()> {
    tool(dir, "umoci", &["init", "--layout", "oci"])?;
    greeting(dir)?;
    every_kind(dir)?;
    bare(dir)?;
    server(dir)
}

/// Makes an image with glibc of what mmdebstrap has made for the template `minimal`, as `debian`. Modes lose their set-id bits.
pub(super) fn debian(dir: &Path) -> Result<()> {
    let share = env::var_os("WRENN_SHARE_DIR").map(PathBuf::from).context("WRENN_SHARE_DIR is not set")?;
    let minimal = share.join("images/minimal/rootfs.ext4").display().to_string();
    let root = begin(dir, "debian")?.display().to_string();
    tool(dir, "debugfs", &["-R", &format!("rdump / {root}"), &minimal])?;
    tool(dir, "umoci", &["repack", "--image", "oci:debian", "debian"])?;
    tool(dir, "umoci", &["config", "--image", "oci:debian", "--config.env", "PATH=/usr/bin:/bin"])
}

/// Begins an image, and returns its root.
fn begin(dir: &Path, tag: &str) -> Result<PathBuf> {
    let image = format!("oci:{tag}");
    tool(dir, "umoci", &["new", "--image", &image])?;
    tool(dir, "umoci", &["unpack", "--image", &image, tag])?;
    Ok(dir.join(tag).join("rootfs"))
}

/// Adds a shell to an image; returns its program.
fn add_shell(root: &Path) -> Result<Vec<u8>> {
    let busybox = fs::read(BUSYBOX).context("busybox-static: run scripts/setup")?;
    fs::create_dir_all(root.join("bin"))?;
    put(&root.join("bin/busybox"), &busybox, 0o755)?;
    LINKS.iter().try_for_each(|name| symlink("busybox", root.join("bin").join(name)))?;
    Ok(busybox)
}

/// Makes an image of two layers, and the same for another architecture.
fn greeting(dir: &Path) -> Result<()> {
    let umoci = |arguments: &[&str]| tool(dir, "umoci", arguments);
    let root = begin(dir, "1")?;
    let busybox = add_shell(&root)?;
    fs::create_dir(root.join("srv"))?;
    put(&root.join("bin/greet"), GREET.as_bytes(), 0o755)?;
    fs::write(root.join("srv/old"), "old\n")?;
    fs::write(root.join("srv/kept"), "kept\n")?;
    umoci(&["repack", "--refresh-bundle", "--image", "oci:1", "1"])?;
    // The second layer.
    fs::remove_file(root.join("srv/old"))?;
    fs::hard_link(root.join("srv/kept"), root.join("srv/linked"))?;
    put(&root.join("srv/suid"), b"", 0o4755)?;
    put(&root.join("bin/httpd"), &busybox, 0o755)?;
    setxattr(root.join("bin/httpd"), "security.capability", &MAY_BIND, XattrFlags::empty())?;
    umoci(&["repack", "--image", "oci:1", "1"])?;
    let program = ["--config.entrypoint", "/bin/greet", "--config.cmd", "x", "--config.cmd", "y"];
    let context = ["--config.user", "1000", "--config.workingdir", "/srv"];
    let env = ["--config.env", "PATH=/bin", "--config.env", "MODE=test"];
    umoci(&[&["config", "--image", "oci:1"][..], &program, &context, &env].concat())?;
    umoci(&["config", "--image", "oci:1", "--tag", "s390x", "--architecture", "s390x"])
}

/// Makes an image of one program without libraries: it has no shell, no accounts and no directories.
fn bare(dir: &Path) -> Result<()> {
    let root = begin(dir, "bare")?;
    fs::copy(BUSYBOX, root.join("busybox")).context("busybox-static: run scripts/setup")?;
    tool(dir, "umoci", &["repack", "--image", "oci:bare", "bare"])?;
    let program = ["--config.entrypoint", "/busybox", "--config.entrypoint", "echo", "--config.cmd", "alone"];
    tool(dir, "umoci", &[&["config", "--image", "oci:bare"][..], &program].concat())?;
    tool(dir, "umoci", &["config", "--image", "oci:bare", "--tag", "ghost", "--config.user", "ghost"])
}

/// Makes the image of a server, as those of databases are.
fn server(dir: &Path) -> Result<()> {
    let root = begin(dir, "server")?;
    add_shell(&root)?;
    put(&root.join("bin/enter"), ENTER.as_bytes(), 0o755)?;
    fs::create_dir(root.join("etc"))?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\napp:x:70:70::/:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\napp:x:70:\n")?;
    tool(dir, "umoci", &["repack", "--image", "oci:server", "server"])?;
    let mut all = vec!["config", "--image", "oci:server", "--config.entrypoint", "/bin/enter"];
    for word in ["sh", "-c", SERVE, "serve", "one", "two words"] {
        all.extend(["--config.cmd", word]);
    }
    all.extend(["--config.env", "PATH=/bin", "--config.env", "DATA=/var/data"]);
    // What has no effect.
    all.extend(["--config.volume", "/var/data", "--config.exposedports", "5432/tcp"]);
    all.extend(["--config.stopsignal", "SIGINT"]);
    tool(dir, "umoci", &all)
}
