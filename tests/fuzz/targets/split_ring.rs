//! libFuzzer's way into [`shunt_fuzz::ring::run_split`].

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| shunt_fuzz::ring::run_split(data));
