//! Seeds of the corpus, made of today's layout.
//!
//! Place: the tests of [`super`] replay them, and write them into the corpus. Source: ours.

mod admin;
mod records;
mod stream;
mod work;

/// Target, name, bytes.
type Seed = (&'static str, String, Vec<u8>);

pub(crate) fn seeds() -> Vec<Seed> {
    let mut seeds = Vec::new();
    stream::stream(&mut seeds);
    admin::admin(&mut seeds);
    work::wqe(&mut seeds);
    records::records(&mut seeds);
    seeds
}
