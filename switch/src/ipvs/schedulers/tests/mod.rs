//! Each scheduler against a plain, slow version of it.
#![forbid(unsafe_code)]
