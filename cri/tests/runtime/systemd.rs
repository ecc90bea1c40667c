// SPDX-License-Identifier: Apache-2.0
//! A real systemd for a test: Debian's, as the first process of namespaces of its own, in a subtree
//! of each hierarchy. It runs one service, which is a test of this executable.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const SYSTEMD: &str = "/usr/lib/systemd/systemd";
pub(crate) const BOOTED: &str = "/run/systemd/system";
const DEADLINE: Duration = Duration::from_secs(120);

/// Into the subtree of every hierarchy, then into new namespaces.
const OUTER: &str = r#"
set -e
for tree in $TREES; do
  if [ -e /sys/fs/cgroup/cgroup.subtree_control ]; then
    for controller in $(cat $tree/cgroup.controllers); do
      echo +$controller > $tree/cgroup.subtree_control || true
    done
  fi
  mkdir -p $tree/$NAME
  for file in cpuset.cpus cpuset.mems; do
    if [ -e $tree/$file ] && [ -z "$(cat $tree/$NAME/$file)" ]; then
      cat $tree/$file > $tree/$NAME/$file
    fi
  done
  echo $$ > $tree/$NAME/cgroup.procs
done
# Not busybox's, which its shell would prefer, and which makes no cgroup namespace.
unshare=/usr/bin/unshare
[ -x $unshare ] || unshare=/usr/local/bin/unshare
# The shell between the two goes back to where it came from: on v2, a cgroup that has children with
# limits may hold no process. The file is open before, as a cgroup namespace does not show the place.
exec 9>/dev/null
[ ! -e /sys/fs/cgroup/cgroup.procs ] || exec 9>/sys/fs/cgroup/cgroup.procs
exec $unshare -C -m -p -n -u -i --propagation private sh -c 'sh "$DIR/inner" 9>&- & echo 0 >&9; wait $!'
"#;

/// A root of its own with the host's programs, then systemd in it.
const INNER: &str = r#"
set -e
R=$DIR/root
mkdir $R && mount -t tmpfs tmpfs $R
mkdir -p $R/usr $R/proc $R/sys $R/dev $R/run $R/tmp $R/etc $R/units $R/out
mount --bind /usr $R/usr
for dir in bin sbin lib lib64; do
  if [ -L /$dir ]; then ln -s usr/$dir $R/$dir; else mkdir $R/$dir && mount --bind /$dir $R/$dir; fi
done
mount --bind "$DIR" $R/out
cp "$EXE" "$DIR/probe"
mount -t proc proc $R/proc
mount -t sysfs sysfs $R/sys
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  mount -t cgroup2 cgroup2 $R/sys/fs/cgroup
else
  mount -t tmpfs tmpfs $R/sys/fs/cgroup
  for tree in $TREES; do
    name=${tree##*/} there=$R/sys/fs/cgroup/${tree##*/}
    mkdir $there
    case $name in
      unified) mount -t cgroup2 cgroup2 $there ;;
      systemd) mount -t cgroup -o none,name=systemd cgroup $there ;;
      *) mount -t cgroup -o $name cgroup $there ;;
    esac
  done
fi
mount -t tmpfs tmpfs $R/dev
for node in null zero full random urandom; do touch $R/dev/$node; mount --bind /dev/$node $R/dev/$node; done
mount -t tmpfs tmpfs $R/run
echo 0123456789abcdef0123456789abcdef > $R/etc/machine-id
printf '[Unit]\nDefaultDependencies=no\nWants=probe.service\n' > $R/units/probe.target
cat > $R/units/probe.service <<END
[Unit]
DefaultDependencies=no
SuccessAction=exit-force
FailureAction=exit-force
FailureActionExitStatus=1
[Service]
Type=oneshot
ExecStart=/out/probe $TEST --exact --ignored --nocapture
StandardOutput=append:/out/log
StandardError=append:/out/log
END
cd $R
exec env -i PATH=/usr/local/bin:/usr/sbin:/usr/bin:/bin container=podwright SYSTEMD_UNIT_PATH=/units:/run/systemd/system.control:/run/systemd/transient \
  SYSTEMD_GENERATOR_PATH=/nothing chroot $R $SYSTEMD --system --unit=probe.target \
  --log-target=console --log-level=notice --show-status=no
"#;

/// The root of every mounted hierarchy.
fn trees() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_path_buf()];
    }
    let entries = std::fs::read_dir(root).expect("lists").flatten();
    let dirs = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.map(|entry| entry.path())
        .filter(|dir| dir.join("cgroup.procs").exists())
        .collect()
}

/// Removes a cgroup and what is below, once its processes are gone.
fn remove(dir: &Path) {
    let start = Instant::now();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    while dir.exists() && std::fs::remove_dir(dir).is_err() {
        assert!(start.elapsed() < DEADLINE, "{} stays", dir.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs a test that is ignored otherwise where systemd is the first process.
pub(crate) fn run_under_systemd(test: &str) {
    if !Path::new(SYSTEMD).exists() {
        // Only an initramfs of the guest's kind has none; a Debian host always does.
        assert!(!Path::new("/etc/debian_version").exists(), "no {SYSTEMD}");
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let name = format!("podwright-test-{:08x}", rand::random::<u32>());
    std::fs::write(dir.path().join("inner"), INNER).expect("writes");
    let trees = trees();
    let list: Vec<String> = trees.iter().map(|dir| dir.display().to_string()).collect();
    let console = std::fs::File::create(dir.path().join("console")).expect("creates");
    let mut child = Command::new("sh")
        .args(["-c", OUTER])
        .env("DIR", dir.path())
        .env("EXE", std::env::current_exe().expect("a path"))
        .env("NAME", &name)
        .env("TREES", list.join(" "))
        .env("SYSTEMD", SYSTEMD)
        .env("TEST", test)
        .stdin(Stdio::null())
        .stdout(console.try_clone().expect("duplicates"))
        .stderr(console)
        .spawn()
        .expect("starts");
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().expect("waits") {
            break Some(status);
        }
        if start.elapsed() > DEADLINE {
            break None;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    if status.is_none() {
        kill_all(&trees, &name);
        let _ = child.wait();
    }
    for tree in &trees {
        remove(&tree.join(&name));
    }
    let text = |file: &str| std::fs::read_to_string(dir.path().join(file)).unwrap_or_default();
    let (log, console) = (text("log"), text("console"));
    let passed = status.is_some_and(|status| status.success()) && log.contains("1 passed");
    assert!(passed, "{status:?}\n{log}\n{console}");
}

fn kill_all(trees: &[PathBuf], name: &str) {
    for tree in trees {
        let procs = std::fs::read_to_string(tree.join(name).join("cgroup.procs"));
        for pid in procs.unwrap_or_default().lines() {
            if let Ok(pid) = pid.parse() {
                let _ = shim::sys::kill(pid, libc::SIGKILL);
            }
        }
    }
}

/// What systemctl prints.
pub(crate) fn systemctl(args: &[&str]) -> String {
    let output = Command::new("systemctl").args(args).output().expect("runs");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A property of a unit.
pub(crate) fn show(unit: &str, property: &str) -> String {
    systemctl(&["show", unit, "--value", "-p", property])
}
