mod client;
mod manifest;

fn main() {}
