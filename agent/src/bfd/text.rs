//! `cairn bfd status` for people.

use std::fmt::Write;
use std::time::Duration;

use cairn_bfd::control::Overview;
use cairn_bfd::status::{Discarded, SessionStatus};
use cairn_bfd::wire::Diagnostic;

/// A line for each session, and below it what is wrong.
pub(super) fn overview(overview: &Overview) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let up = overview.sessions.iter().filter(|s| s.state == cairn_bfd::wire::State::Up).count();
    let _ = writeln!(text, "sessions {up}/{}", overview.sessions.len());
    for status in &overview.sessions {
        session(&mut text, status);
    }
    let Discarded { malformed, ttl, unknown, authenticated } = overview.discarded;
    if overview.discarded != Discarded::default() {
        let _ = writeln!(
            text,
            "discarded packets: malformed {malformed}, from more than one hop away {ttl}, of no session {unknown}, \
             authenticated {authenticated}"
        );
    }
    if let Some(problem) = &overview.priority_problem {
        let _ = writeln!(text, "problem: {problem}");
    }
    text
}

fn session(text: &mut String, status: &SessionStatus) {
    let SessionStatus { spec, peer, .. } = status;
    let _ = write!(
        text,
        "  {:<40} {:<10} for {} {} ms x {}",
        spec.path.to_string(),
        format!("{:?}", status.state),
        age(Duration::from_millis(status.for_ms)),
        spec.interval_ms,
        spec.multiplier,
    );
    if peer.heard {
        let _ = write!(
            text,
            " sends each {} ms, silence of {} ms is the end; peer {:?}{}",
            status.send_interval_ms,
            status.detection_time_ms,
            peer.state,
            if peer.control_plane_independent { ", independent of its BGP" } else { "" },
        );
    } else {
        text.push_str(" peer not heard");
    }
    text.push('\n');
    if status.diagnostic != Diagnostic::None {
        let _ = writeln!(text, "    {}", status.diagnostic);
    }
    if let Some(problem) = &status.problem {
        let _ = writeln!(text, "    problem: {problem}");
    }
}

/// Rounded to what matters.
fn age(time: Duration) -> String {
    let secs = time.as_secs();
    match secs {
        0..60 => format!("{secs}s"),
        60..3600 => format!("{}m", secs / 60),
        3600..172_800 => format!("{}h", secs / 3600),
        _ => format!("{}d", secs / 86_400),
    }
}
