# The image of the DaemonSet: `cairn` without the lab, the static plugins, and the few programs that
# the manifests call (sh, cp, chmod, mv, mount), which the base image has.
FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --locked --release -p cairn-agent --bin cairn --no-default-features \
 && cargo rustc --locked --release -p cairn-cni --bin cairn-cni -- -C target-feature=+crt-static

# The plugin for host ports, which is chained after ours. Debian's is linked to a library that hosts may not
# have, and does not know CNI 1.1.0, the newest version that our network configuration offers.
FROM golang:1.26-bookworm AS portmap
RUN CGO_ENABLED=0 go install -trimpath -ldflags="-s -w" \
      github.com/containernetworking/plugins/plugins/meta/portmap@v1.9.1

FROM debian:bookworm-slim
# The agent writes its packet filter by nft, and its rules in a FORWARD chain of the legacy iptables by
# that one's own tool.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends nftables iptables \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/cairn /src/target/release/cairn-cni /usr/local/bin/
COPY --from=portmap /go/bin/portmap /usr/local/bin/
ENTRYPOINT ["/usr/local/bin/cairn"]
