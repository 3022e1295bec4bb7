//! The wire codec against tables, properties and golden messages.

#[path = "wire/build.rs"]
mod build;
#[path = "wire/corpus.rs"]
mod corpus;
#[path = "wire/errors.rs"]
mod errors;
#[path = "wire/errors_foreign.rs"]
mod errors_foreign;
#[path = "wire/errors_messages.rs"]
mod errors_messages;
#[path = "wire/golden.rs"]
mod golden;
#[path = "wire/round_trip.rs"]
mod round_trip;
