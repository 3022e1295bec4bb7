//! What a `cairn speaker` that leaves its routes with its peers tells the next one: a file in the run
//! directory. Only from it can that one know that it restarts, and say so (RFC 4724 section 4.1).

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

/// Leaves word that the peers keep this speaker's routes.
pub fn leave_word(run_dir: &Path) {
    let path = run_dir.join(FILE);
    if let Err(error) = fs::write(&path, []) {
        tracing::warn!(
            path = %path.display(),
            %error,
            "the next start will not know that it is a restart: peers drop the routes once it connects"
        );
    }
}

/// Whether a former speaker has left word, not too long ago. It counts for one start.
pub fn take_word(run_dir: &Path) -> bool {
    let path = run_dir.join(FILE);
    let left = fs::metadata(&path).and_then(|metadata| metadata.modified());
    match fs::remove_file(&path) {
        // A clock that was set back says nothing about how long ago it was.
        Ok(()) => left.is_ok_and(|left| left.elapsed().unwrap_or_default() < RESTART_TIME_MAX),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot be removed, and does not count");
            false
        }
    }
}

const FILE: &str = "routes-kept";
/// No peer waits for longer: the restart time has 12 bits (RFC 4724 section 3).
const RESTART_TIME_MAX: Duration = Duration::from_secs(4095);

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn word_counts_for_one_start_and_not_for_ever() {
        let directory = std::env::temp_dir().join(format!("restart-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        assert!(!take_word(&directory), "nothing was left");
        leave_word(&directory);
        assert!(take_word(&directory));
        assert!(!take_word(&directory), "it was taken");
        leave_word(&directory);
        let file = fs::File::options().write(true).open(directory.join(FILE)).expect("the file");
        file.set_modified(SystemTime::now() - RESTART_TIME_MAX).expect("a time");
        assert!(!take_word(&directory), "nobody waits any more");
        assert!(!directory.join(FILE).exists());
        fs::remove_dir_all(directory).expect("removed");
    }
}
