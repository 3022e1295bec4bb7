//! Single routes, for setting up a namespace.

use super::absent_is_fine;
use crate::batch::Batch;
use crate::error::Error;
use crate::route::{self, Route};
use crate::socket::Netlink;

/// Adds one route, for setting up a namespace. A route with the same key must not exist.
///
/// # Errors
/// [`Error::Refused`] with EEXIST when a route has the same prefix, table and metric.
pub fn add_route(netlink: &mut Netlink, route: &Route) -> Result<(), Error> {
    netlink.request(Batch::new().add_route(route), || format!("add the route {}", route.prefix))
}

/// Deletes one route, only if its protocol is the given one's. One that is not there is fine.
///
/// # Errors
/// Those of [`Netlink::request`].
pub fn delete_route(netlink: &mut Netlink, route: &Route) -> Result<(), Error> {
    let deleted = netlink
        .request(Batch::new().delete_route(route), || format!("delete the route {}", route.prefix));
    absent_is_fine(deleted)
}

/// Requests about single routes, as [`Netlink::execute`] sends them.
impl Batch {
    /// As [`add_route`].
    pub fn add_route(&mut self, route: &Route) -> &mut Batch {
        route::encode_create(self, route.key(), route.protocol, &route.attributes());
        self
    }

    /// As [`delete_route`], except that a route which is not there is refused.
    pub fn delete_route(&mut self, route: &Route) -> &mut Batch {
        route::encode_delete(self, route.key(), route.protocol);
        self
    }
}
