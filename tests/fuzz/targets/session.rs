//! libFuzzer's way into [`shunt_fuzz::session`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| shunt_fuzz::session::run(data));
