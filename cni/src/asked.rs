//! Addresses that a runtime asks for on behalf of a pod's author (CNI conventions, "ips" and "mac"): they come
//! in three places, which must not contradict each other.

use std::net::IpAddr;

use crate::error::Error;
use crate::names::MacAddress;

/// What is asked for, and in which place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked<T> {
    /// What is asked for.
    pub value: T,
    /// As an error names the place: `runtimeConfig.ips`, say.
    pub place: &'static str,
}

impl Asked<Vec<IpAddr>> {
    /// Reads addresses, each alone or with the length of the subnet that a pod's has, 32 or 128. Without any
    /// nothing is asked for.
    ///
    /// # Errors
    /// What is wrong and what to do, to follow the place's name.
    pub fn ips<'a>(
        place: &'static str,
        texts: impl IntoIterator<Item = &'a str>,
    ) -> Result<Option<Asked<Vec<IpAddr>>>, String> {
        let mut value = Vec::new();
        for text in texts {
            value.push(parse_ip(text)?);
        }
        // IPv4 first, so that two places can be compared.
        value.sort_unstable();
        if let Some([first, second]) =
            value.windows(2).find(|pair| pair[0].is_ipv4() == pair[1].is_ipv4())
        {
            return Err(format!(
                "asks for {first} and {second}: a pod has at most one address of each family"
            ));
        }
        Ok((!value.is_empty()).then_some(Asked { value, place }))
    }
}

impl Asked<MacAddress> {
    /// Reads an Ethernet address. An empty text asks for nothing.
    ///
    /// # Errors
    /// As [`Asked::ips`].
    pub fn mac(place: &'static str, text: &str) -> Result<Option<Asked<MacAddress>>, String> {
        if text.is_empty() {
            return Ok(None);
        }
        let value = MacAddress::parse(text).map_err(|error| format!("is not usable: {error}"))?;
        Ok(Some(Asked { value, place }))
    }
}

/// What all places that ask for something ask for.
///
/// # Errors
/// [`Error::Contradiction`] names two that differ.
pub fn agree<T: PartialEq>(
    places: impl IntoIterator<Item = Option<Asked<T>>>,
) -> Result<Option<Asked<T>>, Error> {
    let mut agreed: Option<Asked<T>> = None;
    for asked in places.into_iter().flatten() {
        match &agreed {
            Some(before) if before.value != asked.value => {
                return Err(Error::Contradiction { first: before.place, second: asked.place });
            }
            Some(_) => {}
            None => agreed = Some(asked),
        }
    }
    Ok(agreed)
}

fn parse_ip(text: &str) -> Result<IpAddr, String> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let shown: String = text.chars().take(80).collect();
    let Ok(address) = address.parse::<IpAddr>() else {
        return Err(format!("holds {shown:?}, which is no address"));
    };
    let alone = if address.is_ipv4() { "32" } else { "128" };
    match length {
        None => Ok(address),
        Some(length) if length == alone => Ok(address),
        Some(_) => Err(format!(
            "holds {shown:?}, but a pod is alone in its subnet: write {address} or {address}/{alone}"
        )),
    }
}
