//! The way to the API server.

use std::net::IpAddr;
use std::path::Path;

use anyhow::Context;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// What a kubeconfig file says.
///
/// # Errors
/// The file cannot be read, or says nothing usable.
pub async fn config_of(path: &Path) -> anyhow::Result<Config> {
    let unusable = || format!("cannot use the kubeconfig {}", path.display());
    let kubeconfig = Kubeconfig::read_from(path).with_context(unusable)?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .with_context(unusable)
}

/// A client.
///
/// # Errors
/// The certificates in `config` cannot be used, or there are none where the server needs them.
pub fn client(config: Config) -> anyhow::Result<Client> {
    Client::try_from(prepared(config)).context("cannot make a client for the API server")
}

/// A client by the file that was named, by KUBECONFIG, as a pod, or by the user's own file.
///
/// # Errors
/// There is none, or what it says cannot be used.
pub async fn of_user(path: Option<&Path>) -> anyhow::Result<Client> {
    let config = match path {
        Some(path) => config_of(path).await?,
        None if std::env::var_os("KUBECONFIG").is_none()
            && std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() =>
        {
            Config::incluster_env().context("cannot reach the API server as a pod")?
        }
        None => Config::from_kubeconfig(&KubeConfigOptions::default())
            .await
            .context("no way to the API server: give --kubeconfig, or set KUBECONFIG")?,
    };
    client(config)
}

/// The address of a server that is named by one and not by a name.
pub fn address_of(config: &Config) -> Option<IpAddr> {
    config.cluster_url.host()?.trim_matches(['[', ']']).parse().ok()
}

/// Without HTTPS no certificate is needed. The client wants the system's at its start all the same, of
/// which a machine may have none.
fn prepared(mut config: Config) -> Config {
    if config.cluster_url.scheme_str() == Some("http") {
        config.root_cert.get_or_insert_default();
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> Config {
        Config::new(url.parse().expect("a URL"))
    }

    #[test]
    fn a_server_has_an_address_or_a_name() {
        let address = |url| address_of(&config(url));
        assert_eq!(address("https://10.96.0.1:443"), "10.96.0.1".parse().ok());
        assert_eq!(address("https://[fd00::1]:6443/base"), "fd00::1".parse().ok());
        assert_eq!(address("https://api.example.net"), None);
    }

    #[test]
    fn only_plain_http_needs_no_certificates() {
        assert_eq!(prepared(config("http://127.0.0.1:8080")).root_cert, Some(Vec::new()));
        assert_eq!(prepared(config("https://127.0.0.1:6443")).root_cert, None);
    }
}
