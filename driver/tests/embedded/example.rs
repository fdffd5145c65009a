//! The example of the embedded cluster says what it should.

#[path = "../../../examples/embedded.rs"]
#[expect(dead_code, reason = "its main function is for `cargo run --example`")]
mod shown;

#[test]
fn the_embedded_example_runs_and_runs_alike() {
    let told = shown::run().unwrap();
    let wanted = "RDMA_WRITE: SUCCESS at 0ns\n\
                  b has: written by a\n\
                  a SEND without a receive waits: true\n\
                  SEND: RNR_RETRY_EXC_ERR / RNR_EXHAUSTED\n\
                  it gave up within a virtual second: true\n\
                  a's NIC sent 12 bytes of payload\n";
    assert_eq!(told, wanted);
    assert_eq!(shown::run().unwrap(), told);
}
