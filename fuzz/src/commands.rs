//! The commands of a fuzzing program.

use std::path::Path;

/// Without arguments AFL++ gives inputs to `run`; `seeds FOLDER` has `write_seeds` write the inputs that it begins
/// with, and `replay FILE` shows one by `show` before it is run.
///
/// # Errors
/// A file cannot be read or written.
pub fn main(
    run: fn(&[u8]),
    show: fn(&[u8]),
    write_seeds: fn(&Path) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["seeds", folder] => write_seeds(Path::new(folder)),
        ["replay", file] => {
            let input = std::fs::read(file)?;
            show(&input);
            run(&input);
            println!("nothing failed");
            Ok(())
        }
        [] => {
            afl::fuzz!(|input: &[u8]| run(input));
            Ok(())
        }
        _ => {
            let name = env!("CARGO_BIN_NAME");
            eprintln!("usage: {name} [seeds FOLDER | replay FILE]; without arguments for AFL++");
            std::process::exit(2);
        }
    }
}
