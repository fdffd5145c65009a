//! Socket semantics that must be the same on plain Linux and through the library: small C programs run in both worlds.

use crate::harness::in_both_worlds;

#[test]
fn a_thread_can_be_cancelled_in_recv_accept_and_poll() {
    in_both_worlds("cancel");
}

#[test]
fn a_handler_can_jump_out_of_recv_accept_and_poll() {
    in_both_worlds("longjmp");
}

#[test]
fn forked_and_spawned_children_share_and_close_sockets_as_ever() {
    in_both_worlds("children");
}

#[test]
fn duplicates_and_ranges_of_descriptors_behave() {
    in_both_worlds("descriptors");
}

#[test]
fn select_without_descriptors_sleeps_and_errno_is_kept() {
    in_both_worlds("waiting");
}

#[test]
fn epoll_is_level_edge_and_oneshot() {
    in_both_worlds("epoll");
}
