//! The rtnetlink crate: a message and an acknowledgement for each route, so many at a time.

use cairn_kernel::route::Family;
use cairn_kernel::{ROUTE_METRIC, ROUTE_PROTOCOL};
use futures::{StreamExt, TryStreamExt, stream};
use rtnetlink::packet_route::route::{RouteMessage, RouteProtocol};
use rtnetlink::{Handle, RouteMessageBuilder, RouteNextHopBuilder};

use super::bed::{Bed, Sample, Samples, sample};
use super::cell::{Load, Moment, Shape, object};
use crate::Result;

/// One run, on a thread of its own in the namespace.
pub fn run(bed: &Bed) -> Result<Samples> {
    bed.netns.run(|| in_namespace(bed).map_err(|error| error.to_string()))?.map_err(Into::into)
}

fn in_namespace(bed: &Bed) -> Result<Samples> {
    let count = bed.load.prefixes.len();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = {
        let _context = runtime.enter();
        let (connection, handle, _) = rtnetlink::new_connection()?;
        runtime.spawn(connection);
        handle
    };
    let before = messages(&bed.load, Moment::Before)?;
    let keys = before.clone();
    let add = |message| handle.route().add(message).execute();
    let install = each(&runtime, before, add)?;
    bed.expect_routes(ROUTE_PROTOCOL, count)?;
    let (resync, seen) = sample(|| runtime.block_on(dump(&handle)))?;
    if seen < count {
        return Err(format!("rtnetlink sees {seen} of {count} routes").into());
    }
    let replace = |message| handle.route().add(message).replace().execute();
    let replace = each(&runtime, messages(&bed.load, Moment::After)?, replace)?;
    bed.expect_routes(ROUTE_PROTOCOL, count)?;
    let del = |message| handle.route().del(message).execute();
    // What is there now has other gateways, which a deletion would have to match.
    let keys = keys.into_iter().map(|mut message| {
        message.attributes.retain(|attribute| {
            use rtnetlink::packet_route::route::RouteAttribute::{Destination, Priority, Table};
            matches!(attribute, Destination(_) | Priority(_) | Table(_))
        });
        message
    });
    let remove = each(&runtime, keys.collect(), del)?;
    bed.expect_routes(ROUTE_PROTOCOL, 0)?;
    let [install, resync, replace, remove] = [install, resync, replace, remove].map(Some);
    Ok(Samples { install, resync, replace, remove })
}

/// Carries out one request for each message.
fn each<F>(
    runtime: &tokio::runtime::Runtime,
    messages: Vec<RouteMessage>,
    request: impl Fn(RouteMessage) -> F,
) -> Result<Sample>
where
    F: Future<Output = std::result::Result<(), rtnetlink::Error>>,
{
    let (taken, ()) = sample(|| {
        let requests = stream::iter(messages).map(request).buffer_unordered(AT_A_TIME);
        Ok(runtime.block_on(requests.try_collect::<()>())?)
    })?;
    Ok(taken)
}

/// Reads all routes of both families and looks at none.
async fn dump(handle: &Handle) -> Result<usize> {
    let v4 = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
    let v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
    let mut seen = 0;
    for message in [v4, v6] {
        let mut routes = handle.route().get(message).execute();
        while routes.try_next().await?.is_some() {
            seen += 1;
        }
    }
    Ok(seen)
}

fn messages(load: &Load, moment: Moment) -> Result<Vec<RouteMessage>> {
    let message = |(index, prefix): (usize, &ipnet::IpNet)| -> Result<RouteMessage> {
        let mut message = RouteMessageBuilder::<std::net::IpAddr>::new()
            .destination_prefix(prefix.network(), prefix.prefix_len())?
            .priority(ROUTE_METRIC)
            .protocol(RouteProtocol::from(ROUTE_PROTOCOL));
        let gateways = load.gateways(index, moment);
        message = match (load.cell.shape, gateways.as_slice()) {
            (Shape::Object, _) => message.nhid(object(load.hop(index, moment))),
            (Shape::Plain, [gateway, ..]) => {
                message.output_interface(load.ifindex).gateway(*gateway)?
            }
            (_, gateways) => {
                let mut hops = Vec::new();
                for gateway in gateways {
                    let hop = match load.cell.family {
                        Family::V4 => RouteNextHopBuilder::new_ipv4(),
                        Family::V6 => RouteNextHopBuilder::new_ipv6(),
                    };
                    hops.push(hop.interface(load.ifindex).via(*gateway)?.build());
                }
                message.multipath(hops)
            }
        };
        Ok(message.build())
    };
    load.prefixes.iter().enumerate().map(message).collect()
}

/// More are no faster.
const AT_A_TIME: usize = 64;
