//! The process is killed in the middle of a full table.

use std::time::{Duration, Instant};

use cairn_kernel::ROUTE_PROTOCOL;
use cairn_lab::flow::Flow;

use crate::model::ip;
use crate::node::PATIENCE;
use crate::notices::{Notice, Notices};
use crate::site::{Far, MANY, Site, TARGET, until};

#[test]
fn killed_in_the_middle_of_a_full_table_it_writes_only_the_rest() {
    let site = Site::new();
    let mut speaker = site.start();
    let far = Far::start(&site);
    until("the first route", || site.installed() == 1);
    let flow = Flow::start(&site.source.netns, &site.far.netns, ip(TARGET), 1000).expect("a flow");
    std::thread::sleep(Duration::from_millis(200));
    let began = flow.position();

    let notices = site.node.netns.run(Notices::open).expect("entered");
    far.many.send_replace(MANY);
    let deadline = Instant::now() + PATIENCE;
    let mut written = 0;
    while written < MANY / 8 {
        assert!(Instant::now() < deadline, "{written} written");
        let ours = |notice: &&Notice| notice.protocol == Some(ROUTE_PROTOCOL);
        written += notices.take().iter().filter(ours).count();
        std::hint::spin_loop();
    }
    speaker.kill().expect("killed");
    speaker.wait().expect("its end");
    let before = site.installed();
    assert!(
        before >= written && before < MANY,
        "in the middle: {before} of {MANY}, {written} told"
    );
    notices.take();

    let _speaker = site.start();
    until("every route", || site.installed() == MANY + 1);
    std::thread::sleep(Duration::from_millis(300));
    let (mut created, mut others) = (0, Vec::new());
    for notice in notices.take() {
        let creates =
            notice.kind == libc::RTM_NEWROUTE && notice.flags & libc::NLM_F_REPLACE as u16 == 0;
        match notice.protocol {
            Some(ROUTE_PROTOCOL) if creates => created += 1,
            Some(ROUTE_PROTOCOL) => others.push(notice),
            _ => {}
        }
    }
    assert_eq!((created, others), (MANY + 1 - before, vec![]), "only the difference");
    let loss = flow.since(began);
    assert!(loss.sent > 500, "{loss}");
    assert_eq!(loss.lost, 0, "on a route that nothing happens to: {loss}");
}

/// Which thread hears first that BGP has ended must not decide it.
#[test]
fn stopped_for_good_it_takes_its_routes_along_every_time() {
    let site = Site::new();
    let _far = Far::start(&site);
    for round in 0..8 {
        let mut speaker = site.start_with(&[], None);
        until("the first route", || site.installed() == 1);
        let pid = libc::pid_t::try_from(speaker.id()).expect("a process id");
        // SAFETY: kill takes no memory; the process is ours and was not waited for yet.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
        assert!(speaker.wait().expect("its end").success());
        assert_eq!(site.installed(), 0, "round {round}");
    }
}
