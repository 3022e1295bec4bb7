//! One session with a clock of its own.

#![allow(dead_code, reason = "shared by several test files")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use cairn_bgp::config;
use cairn_bgp::prefix::{Families, Family};
use cairn_bgp::session::{
    Action, ConnectionId, DownReason, Event, Jitter, LocalAddresses, Message, Received, Restart,
    Session, SessionConfig, SessionState,
};
use cairn_bgp::wire::{
    Capability, GracefulRestart, GracefulRestartFamily, Notification, NotificationError, Open,
};

pub const FRESH: Restart = Restart { restarting: false, forwarding_preserved: true };

pub fn addresses() -> LocalAddresses {
    LocalAddresses {
        ipv4: Some(Ipv4Addr::new(192, 0, 2, 1)),
        ipv6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
        link: None,
    }
}

pub fn config(local: u8, remote: u8, local_asn: u32, peer_asn: u32) -> SessionConfig {
    SessionConfig {
        address: IpAddr::V4(Ipv4Addr::new(192, 0, 2, remote)),
        local_asn,
        peer_asn,
        router_id: Ipv4Addr::new(192, 0, 2, local),
        has_password: false,
        passive: false,
        families: Families::from_iter(Family::ALL),
        extended_next_hop: false,
        hold_time_secs: 90,
        send_hold_time_secs: 480,
        connect_retry_secs: 10,
        graceful_restart: Some(config::GracefulRestart::new(60)),
        add_path: Default::default(),
    }
}

/// The peer's OPEN in the tables below.
pub fn open(asn: u32) -> Open {
    let family = |family: Family| GracefulRestartFamily {
        afi: family.afi(),
        safi: family.safi(),
        forwarding: true,
    };
    Open {
        asn,
        hold_time_secs: 30,
        router_id: Ipv4Addr::new(192, 0, 2, 2),
        capabilities: vec![
            Capability::multiprotocol(Family::Ipv4Unicast),
            Capability::multiprotocol(Family::Ipv6Unicast),
            Capability::GracefulRestart(GracefulRestart {
                restarting: false,
                notification: false,
                restart_time_secs: 20,
                families: Family::ALL.into_iter().map(family).collect(),
            }),
            Capability::FourOctetAs(asn),
        ],
    }
}

/// One session with a clock, and its actions as they come.
pub struct Bench {
    pub session: Session,
    pub now: Instant,
}

impl Bench {
    pub fn new(config: SessionConfig) -> Bench {
        Bench { session: Session::new(config, FRESH, Jitter::new(1)), now: Instant::now() }
    }

    pub fn handle(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        self.session.handle(self.now, event, &mut actions);
        actions
    }

    pub fn receive(&mut self, connection: ConnectionId, message: Received) -> Vec<Action> {
        self.handle(Event::Received { connection, message })
    }

    /// Lets time pass up to the next deadline.
    pub fn next(&mut self) -> Vec<Action> {
        self.now = self.session.next_deadline().expect("a deadline");
        self.handle(Event::Tick)
    }

    pub fn connect(&mut self) -> ConnectionId {
        let actions = self.handle(Event::Start);
        let [Action::Connect(connection)] = actions[..] else { panic!("{actions:?}") };
        let actions = self.handle(Event::Connected { connection, addresses: addresses() });
        assert!(matches!(&actions[..], [Action::Send(_, Message::Open(_))]), "{actions:?}");
        connection
    }

    pub fn accept(&mut self) -> (ConnectionId, Vec<Action>) {
        let connection = self.session.next_connection();
        (connection, self.handle(Event::Accepted { connection, addresses: addresses() }))
    }

    pub fn confirm(&mut self, connection: ConnectionId, peer: Open) {
        let actions = self.receive(connection, Received::Open(Box::new(peer)));
        assert!(
            actions
                .iter()
                .any(|a| matches!(a, Action::Send(c, Message::Keepalive) if *c == connection)),
            "{actions:?}"
        );
        assert_eq!(self.session.state(), SessionState::OpenConfirm);
    }

    pub fn establish(&mut self) -> ConnectionId {
        let connection = self.connect();
        self.confirm(connection, open(65002));
        let actions = self.receive(connection, Received::Keepalive);
        assert!(matches!(&actions[..], [Action::Up(_)]), "{actions:?}");
        connection
    }
}

/// The NOTIFICATION that was sent over a connection before it was closed.
pub fn farewell(actions: &[Action], connection: ConnectionId) -> Option<NotificationError> {
    let sent = actions
        .iter()
        .position(|a| matches!(a, Action::Send(c, Message::Notification(_)) if *c == connection))?;
    let closed = actions.iter().position(|a| matches!(a, Action::Close(c) if *c == connection))?;
    assert!(sent < closed, "{actions:?}");
    match &actions[sent] {
        Action::Send(_, Message::Notification(notification)) => Some(notification.error),
        _ => None,
    }
}

/// The data of the NOTIFICATION that is sent.
pub fn farewell_data(actions: &[Action]) -> &[u8] {
    let data = actions.iter().find_map(|action| match action {
        Action::Send(_, Message::Notification(notification)) => Some(&notification.data[..]),
        _ => None,
    });
    data.expect("a NOTIFICATION")
}

pub fn down(actions: &[Action]) -> Option<(&DownReason, Families)> {
    actions.iter().find_map(|action| match action {
        Action::Down { reason, keep, .. } => Some((reason, *keep)),
        _ => None,
    })
}

pub const BOTH: fn() -> Families = || Families::from_iter(Family::ALL);

/// The NOTIFICATION that was sent, whole.
pub fn notification(actions: &[Action]) -> Option<&Notification> {
    actions.iter().find_map(|action| match action {
        Action::Send(_, Message::Notification(notification)) => Some(notification),
        _ => None,
    })
}
