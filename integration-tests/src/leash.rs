//! Programs of others that end when the test process does.

use std::{
    fs,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
};

/// Runs a program until standard input is closed, as it is when the test process ends, however that happens, and removes
/// a folder then: sh -c LEASH sh FOLDER PROGRAM ARG…
const LEASH: &str = r#"folder=$1; shift
"$@" </dev/null & program=$!
cat >/dev/null
kill -9 $program; wait $program
rm -rf "$folder""#;

/// A program on a [`LEASH`].
#[derive(Debug)]
pub(crate) struct Leashed {
    shell: Child,
    stdin: Option<ChildStdin>,
}

impl Leashed {
    /// Starts it in `folder`, with its log beside what it writes there, and has `removed` removed once it has ended.
    pub(crate) fn start(
        program: &Path,
        folder: &Path,
        removed: Option<&Path>,
        args: impl IntoIterator<Item = String>,
    ) -> Self {
        let name = program.file_name().expect("a program has a name").display();
        let log = fs::File::create(folder.join(format!("{name}.log"))).expect("a log");
        let mut shell = Command::new("sh")
            .args(["-c", LEASH, "sh"])
            .arg(removed.unwrap_or(Path::new("")))
            .arg(program)
            .args(args)
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("sh runs");
        let stdin = shell.stdin.take();
        Self { shell, stdin }
    }
}

impl Drop for Leashed {
    fn drop(&mut self) {
        self.stdin.take();
        let _ = self.shell.wait();
    }
}
