//! Placeholder door, replaced in the next commit.
