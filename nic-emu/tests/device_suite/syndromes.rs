//! Every syndrome of the contract has a test that provokes it: the table, and the test of the table.
//!
//! A row names a test of this suite; it is run again here, and one of its clients must be told the syndrome, by a completion, an event
//! or a refused command. A syndrome without a row fails.

use std::fs;
use std::path::Path;

use ring_proto::status::Syndrome;

use crate::{
    atomics, client, cm, completion, cq_change, faults, flush, modify, mw, packet, port, rnr, srq,
    windows, wqe,
};

/// Syndromes that no client can provoke: the unit test inside the device that does.
const INSIDE: [(Syndrome, &str, &str); 1] = [(
    Syndrome::INTERNAL_ERROR,
    "src/device/engine.rs",
    "fn panic_in_the_work_of_one_function_fails_that_function_alone",
)];

macro_rules! rows {
    ($($syndrome:ident => $($test:ident)::+,)*) => {
        [$((Syndrome::$syndrome, stringify!($($test)::+), $($test)::+ as fn())),*]
    };
}

#[test]
fn every_syndrome_is_provoked_by_a_test() {
    let rows = rows! {
        NONE => wqe::sound_wqe_completes,
        BAD_OPCODE => wqe::each_bad_field_of_a_send_wqe_has_its_syndrome,
        BAD_BLOCKS => wqe::each_bad_field_of_a_send_wqe_has_its_syndrome,
        BAD_SGE_COUNT => wqe::each_bad_field_of_a_send_wqe_has_its_syndrome,
        BAD_INLINE_LENGTH => wqe::each_bad_field_of_an_inline_wqe_has_its_syndrome,
        RESERVED_NOT_ZERO => wqe::each_bad_field_of_a_send_wqe_has_its_syndrome,
        WQE_WRAPS => wqe::wqe_across_the_end_of_the_ring_is_refused,
        DOORBELL_OUT_OF_RANGE => wqe::impossible_doorbells_end_the_qp,
        BAD_TOTAL => wqe::each_bad_field_of_a_send_wqe_has_its_syndrome,
        MESSAGE_TOO_LONG => wqe::message_above_the_ports_maximum_is_refused,
        BAD_ATOMIC_LENGTH => atomics::each_malformed_field_has_its_syndrome,
        LKEY_UNKNOWN => wqe::each_bad_local_key_has_its_syndrome,
        LKEY_PD_MISMATCH => wqe::keys_of_another_protection_domain_are_refused,
        LKEY_OUT_OF_BOUNDS => wqe::each_bad_local_key_has_its_syndrome,
        LKEY_NO_ACCESS => wqe::read_into_a_region_without_local_write_is_refused,
        WINDOW_GONE => windows::regions_of_an_unmapped_window_refuse_both_ends,
        RKEY_UNKNOWN => wqe::each_bad_remote_key_has_its_syndrome,
        RKEY_PD_MISMATCH => wqe::region_of_another_protection_domain_refuses_the_peer,
        RKEY_OUT_OF_BOUNDS => wqe::each_bad_remote_key_has_its_syndrome,
        RKEY_NO_ACCESS => wqe::region_rights_bind_the_peer,
        RKEY_WRONG_QP => wqe::region_with_an_owner_serves_that_qp_only,
        QP_NO_ACCESS => wqe::qp_rights_bind_the_peer,
        ATOMIC_MISALIGNED => atomics::an_atomic_at_an_odd_address_is_an_invalid_request,
        KEY_INVALIDATED => mw::invalidate::an_invalidated_key_refuses_the_peer,
        RECV_TOO_SHORT => wqe::each_bad_field_of_a_receive_has_its_syndrome,
        RECV_BAD_WQE => wqe::each_bad_field_of_a_receive_has_its_syndrome,
        RNR_EXHAUSTED => rnr::finite_retries_run_out,
        PEER_GONE => rnr::send_to_a_peer_that_never_connects_fails_after_its_retries,
        PEER_IN_ERROR => rnr::waiting_send_fails_when_the_receiver_goes_to_err,
        FLUSHED => flush::error_flushes_everything_posted_and_all_that_follows,
        CQ_OVERRUN => completion::cq_that_overruns_ends_its_qps_and_keeps_what_it_has,
        BAD_QP_STATE => flush::transitions_follow_verbs,
        DISCONNECTED => flush::disconnect_flushes_both_ends_and_tells_the_other,
        RETRIES_EXHAUSTED => packet::retries::cut_link_ends_after_the_last_retry_and_not_before,
        EQ_OVERRUN => port::events_that_nobody_takes_fail_the_function_in_the_end,
        FAULT_INJECTED => faults::wqe_completes_with_the_chosen_status_in_its_turn,
        CURRENT_STATE_DIFFERS => modify::the_other_refusals_name_their_reason,
        ATTRIBUTE_MISSING => modify::every_change_takes_exactly_the_attributes_of_the_manual,
        ATTRIBUTE_NOT_ALLOWED => modify::the_other_refusals_name_their_reason,
        ATTRIBUTE_OUT_OF_RANGE => modify::each_impossible_value_is_named,
        ATTRIBUTE_NOT_GIVEN => modify::the_other_refusals_name_their_reason,
        SQ_DRAINING => modify::drain::send_queue_drains_what_is_under_way_and_holds_the_rest,
        QP_CONNECTING => cm::qp_cannot_be_modified_while_it_connects,
        NO_SUCH_PEER => modify::the_other_refusals_name_their_reason,
        CQ_TOO_SMALL => cq_change::new_ring_must_hold_what_waits_exactly,
        CQ_RINGS_OVERLAP => cq_change::each_bad_field_of_cq_resize_has_its_status,
        CQ_BROKEN => cq_change::overrun_comes_with_the_first_entry_too_many_and_ends_resizing,
        MODERATION_ENDLESS => cq_change::moderation_that_could_hold_for_ever_is_refused,
        NO_INITIATOR_DEPTH => modify::effects::reads_need_depth_at_both_ends,
        NO_RESPONDER_DEPTH => modify::effects::reads_need_depth_at_both_ends,
        PORT_DOWN => port::port_that_stays_down_ends_the_retries,
        MW_UNKNOWN => mw::each_failed_check_of_a_binding_has_its_syndrome,
        MW_WRONG_TYPE => mw::each_failed_check_of_a_binding_has_its_syndrome,
        MW_PD_MISMATCH => mw::each_failed_check_of_a_binding_has_its_syndrome,
        MW_STILL_BOUND => mw::each_failed_check_of_a_binding_has_its_syndrome,
        MW_KEY_NOT_FRESH => mw::each_failed_check_of_a_binding_has_its_syndrome,
        MW_ZERO_LENGTH => mw::each_failed_check_of_a_binding_has_its_syndrome,
        MW_BAD_RIGHTS => mw::each_failed_check_of_a_binding_has_its_syndrome,
        MW_BIND_NOT_ALLOWED => mw::each_failed_check_of_a_binding_has_its_syndrome,
        MW_NEEDS_LOCAL_WRITE => mw::each_failed_check_of_a_binding_has_its_syndrome,
        SRQ_BROKEN => srq::a_producer_past_the_depth_breaks_the_srq,
        INV_UNKNOWN_KEY => mw::invalidate::each_failed_check_of_an_invalidation_has_its_syndrome,
        INV_PD_MISMATCH => mw::invalidate::each_failed_check_of_an_invalidation_has_its_syndrome,
        INV_WRONG_QP => mw::invalidate::each_failed_check_of_an_invalidation_has_its_syndrome,
        INV_NOT_VALID => mw::invalidate::each_failed_check_of_an_invalidation_has_its_syndrome,
        INV_NOT_ALLOWED => mw::invalidate::each_failed_check_of_an_invalidation_has_its_syndrome,
        INV_REGION_BOUND => mw::invalidate::each_failed_check_of_an_invalidation_has_its_syndrome,
    };
    for &syndrome in Syndrome::ALL {
        if let Some((_, file, test)) = INSIDE.iter().find(|(inside, ..)| *inside == syndrome) {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
            assert!(
                fs::read_to_string(path).unwrap().contains(test),
                "{syndrome}: {file} has no {test}"
            );
            continue;
        }
        let (_, name, test) = rows
            .iter()
            .find(|(provoked, ..)| *provoked == syndrome)
            .unwrap_or_else(|| panic!("no test is named that provokes {syndrome}"));
        drop(client::told());
        test();
        assert!(
            client::told().contains(&syndrome),
            "{name} tells nobody of {syndrome}"
        );
    }
    assert_eq!(rows.len() + INSIDE.len(), Syndrome::ALL.len());
}
