//! Messages of clients, sound and broken in every field.

use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::*;

fn header(size: u32, flags: u32) -> Header {
    Header {
        message_id: 1,
        command: vfio::CMD_REGION_READ,
        size,
        flags,
        error: 0,
    }
}

#[test]
fn framing_accepts_exactly_the_sizes_between_header_and_limit() {
    let max = u32::try_from(vfio::MAX_MESSAGE).unwrap();
    for (size, flags, frame_wanted) in [
        (0, 0, Frame::Broken(Errno::EINVAL)),
        (15, 0, Frame::Broken(Errno::EINVAL)),
        (16, 0, Frame::Command(0)),
        (max, 0, Frame::Command(MAX_PAYLOAD)),
        (max + 1, 0, Frame::Broken(Errno::EMSGSIZE)),
        (u32::MAX, 0, Frame::Broken(Errno::EMSGSIZE)),
        (16, vfio::FLAG_REPLY, Frame::Ignored(0)),
        (16, vfio::FLAG_NO_REPLY, Frame::Command(0)),
        (16, 2, Frame::Broken(Errno::EINVAL)),
    ] {
        assert_eq!(frame(&header(size, flags)), frame_wanted, "{size} {flags}");
    }
}

#[test]
fn version_needs_a_nul_and_json() {
    let with = |text: &[u8]| {
        let mut payload = vec![0, 0, 1, 0];
        payload.extend_from_slice(text);
        parse(vfio::CMD_VERSION, &payload, 0).map(|request| match request {
            Request::Version(Minor(minor)) => minor,
            other => panic!("{other:?}"),
        })
    };
    for good in [
        &b""[..],
        b"{}\0",
        // What fills a structure up.
        b"{}\0\0\0",
        b"{\"capabilities\":{\"max_msg_fds\":8,\"other\":[1]},\"more\":1}\0",
    ] {
        assert_eq!(with(good), Ok(1));
    }
    for bad in [
        &b"{}"[..],
        b"\0",
        b"{}\0 \0",
        b"[]\0",
        b"{\"capabilities\":7}\0",
    ] {
        assert_eq!(with(bad), Err(Errno::EINVAL));
    }
    assert_eq!(
        parse(vfio::CMD_VERSION, &[1, 0, 0, 0], 0),
        Err(Errno::EPROTONOSUPPORT)
    );
    assert_eq!(parse(vfio::CMD_VERSION, &[0, 0, 1], 0), Err(Errno::EINVAL));
}

#[test]
fn a_minor_version_of_the_future_is_answered_with_ours() {
    let payload = [0, 0, 9, 0];
    let Ok(Request::Version(minor)) = parse(vfio::CMD_VERSION, &payload, 0) else {
        panic!("refused");
    };
    assert_eq!(minor, Minor(vfio::VERSION_MINOR));
    let reply = version_reply(minor);
    assert_eq!(reply.last(), Some(&0));
    let text = &reply[4..reply.len() - 1];
    let value: serde_json::Value = serde_json::from_slice(text).unwrap();
    assert_eq!(value["capabilities"]["max_msg_fds"], 16);
    assert_eq!(value["capabilities"]["write_multiple"], true);
}

#[test]
fn every_flag_combination_of_set_irqs_has_one_answer() {
    let set = |flags, start, count, data: &[u8], fds| {
        let set = vfio::IrqSet {
            argsz: 20,
            flags,
            index: 2,
            start,
            count,
        };
        let payload = [set.as_bytes(), data].concat();
        parse(vfio::CMD_DEVICE_SET_IRQS, &payload, fds).map(|request| match request {
            Request::SetIrqs { action, .. } => format!("{action:?}"),
            other => panic!("{other:?}"),
        })
    };
    let (none, bool_, eventfd) = (1, 2, 4);
    let (mask, unmask, trigger) = (8, 16, 32);
    let ok = |text: &str| Ok(text.to_owned());
    assert_eq!(set(none | trigger, 0, 0, &[], 0), ok("DisableAll"));
    assert_eq!(set(none | trigger, 1, 0, &[], 0), Err(Errno::EINVAL));
    assert_eq!(set(none | trigger, 3, 2, &[], 0), ok("Trigger(All)"));
    assert_eq!(
        set(bool_ | trigger, 0, 2, &[0, 1], 0),
        ok("Trigger(Some([0, 1]))")
    );
    assert_eq!(set(bool_ | trigger, 0, 3, &[0, 1], 0), Err(Errno::EINVAL));
    assert_eq!(set(eventfd | trigger, 0, 2, &[], 2), ok("Assign"));
    assert_eq!(set(eventfd | trigger, 0, 2, &[], 0), ok("Assign"));
    assert_eq!(set(eventfd | trigger, 0, 2, &[], 1), Err(Errno::EINVAL));
    assert_eq!(set(eventfd | trigger, 0, 17, &[], 17), Err(Errno::EINVAL));
    assert_eq!(set(none | trigger, 0, 1, &[], 1), Err(Errno::EINVAL));
    assert_eq!(set(none | mask, 0, 1, &[], 0), ok("Mask(All)"));
    assert_eq!(set(bool_ | unmask, 0, 1, &[1], 0), ok("Unmask(Some([1]))"));
    assert_eq!(set(none | unmask, 0, 0, &[], 0), Err(Errno::EINVAL));
    assert_eq!(set(eventfd | mask, 0, 1, &[], 0), Err(Errno::ENOTSUP));
    assert_eq!(set(eventfd | unmask, 0, 1, &[], 0), Err(Errno::ENOTSUP));
    assert_eq!(
        set(none | bool_ | trigger, 0, 1, &[1], 0),
        Err(Errno::EINVAL)
    );
    assert_eq!(set(trigger, 0, 1, &[], 0), Err(Errno::EINVAL));
    assert_eq!(set(none, 0, 1, &[], 0), Err(Errno::EINVAL));
    assert_eq!(set(none | trigger, u32::MAX, 2, &[], 0), Err(Errno::EINVAL));
    assert_eq!(set(64 | none | trigger, 0, 1, &[], 0), Err(Errno::EINVAL));
}

#[test]
fn a_read_of_a_gibibyte_is_refused_by_its_count() {
    let access = vfio::RegionAccess {
        offset: 0,
        region: 0,
        count: 1 << 30,
    };
    assert_eq!(
        parse(vfio::CMD_REGION_READ, access.as_bytes(), 0),
        Err(Errno::EINVAL)
    );
}

#[test]
fn error_replies_carry_the_errno_and_the_id() {
    let to = header(16, 0);
    let reply = error_header(&to, Errno::ENOTSUP);
    assert_eq!(
        (reply.message_id, reply.command),
        (1, vfio::CMD_REGION_READ)
    );
    assert_eq!((reply.size, reply.error), (16, 95));
    assert_eq!(reply.flags, vfio::FLAG_REPLY | vfio::FLAG_ERROR);
}

/// A payload that is almost right: a sound structure with a few fields changed, cut or lengthened.
fn payloads() -> impl Strategy<Value = (u16, Vec<u8>, usize)> {
    let interesting = prop_oneof![
        Just(0u32),
        Just(1),
        Just(2),
        Just(8),
        Just(16),
        Just(32),
        Just(64),
        Just(u32::MAX),
        any::<u32>(),
    ];
    let words = proptest::collection::vec(interesting, 0..40);
    (0u16..20, words, 0usize..4, 0usize..20).prop_map(|(command, words, cut, fds)| {
        let mut bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        bytes.truncate(bytes.len().saturating_sub(cut));
        (command, bytes, fds)
    })
}

/// What must hold of every request that is let through.
fn check(request: &Request<'_>, payload: &[u8], fds: usize) -> Result<(), TestCaseError> {
    match request {
        Request::RegionRead { count, .. } => prop_assert!(*count <= MAX_TRANSFER),
        Request::RegionWrite { data, .. } => {
            prop_assert_eq!(data.len() + size_of::<vfio::RegionAccess>(), payload.len());
        }
        Request::RegionWriteMulti(entries) => {
            prop_assert_eq!(8 + entries.len() * 24, payload.len());
            prop_assert!(entries.iter().all(|e| e.count <= 8));
        }
        Request::SetIrqs {
            start,
            count,
            action,
            ..
        } => {
            prop_assert!(start.checked_add(*count).is_some());
            match action {
                IrqRequest::Assign => prop_assert!(fds == 0 || fds == *count as usize),
                IrqRequest::Trigger(Which::Some(bytes))
                | IrqRequest::Mask(Which::Some(bytes))
                | IrqRequest::Unmask(Which::Some(bytes)) => {
                    prop_assert_eq!(bytes.len(), *count as usize);
                }
                IrqRequest::DisableAll
                | IrqRequest::Trigger(Which::All)
                | IrqRequest::Mask(Which::All)
                | IrqRequest::Unmask(Which::All) => {}
            }
        }
        Request::DmaMap(map) => prop_assert!(matches!(map.flags, 1..=3)),
        Request::DmaUnmap(unmap) => prop_assert!(matches!(unmap.flags, 0 | 2)),
        _ => {}
    }
    let takes_fds = matches!(
        request,
        Request::DmaMap(_)
            | Request::SetIrqs {
                action: IrqRequest::Assign,
                ..
            }
    );
    prop_assert!(fds == 0 || takes_fds);
    Ok(())
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_parsed_or_refused(
        command in 0u16..20,
        payload in proptest::collection::vec(any::<u8>(), 0..256),
        fds in 0usize..20,
    ) {
        if let Ok(request) = parse(command, &payload, fds) {
            check(&request, &payload, fds)?;
        }
    }

    #[test]
    fn almost_right_payloads_are_parsed_or_refused((command, payload, fds) in payloads()) {
        if let Ok(request) = parse(command, &payload, fds) {
            check(&request, &payload, fds)?;
        }
    }

    #[test]
    fn sound_commands_are_understood(
        argsz in 32u32..,
        flags in 1u32..4,
        offset: u64,
        address: u64,
        size: u64,
        region: u32,
        data in proptest::collection::vec(any::<u8>(), 0..300),
        count in 0..=u32::try_from(MAX_TRANSFER).unwrap(),
        entries in proptest::collection::vec((any::<u64>(), any::<u32>(), 0u32..9, any::<u64>()), 0..30),
    ) {
        let map = vfio::DmaMap { argsz, flags, offset, address, size };
        prop_assert_eq!(parse(vfio::CMD_DMA_MAP, map.as_bytes(), 1), Ok(Request::DmaMap(map)));
        let access = vfio::RegionAccess { offset, region, count };
        prop_assert_eq!(
            parse(vfio::CMD_REGION_READ, access.as_bytes(), 0),
            Ok(Request::RegionRead { region, offset, count: count as usize })
        );
        let access = vfio::RegionAccess { offset, region, count: u32::try_from(data.len()).unwrap() };
        let payload = [access.as_bytes(), &data].concat();
        prop_assert_eq!(
            parse(vfio::CMD_REGION_WRITE, &payload, 0),
            Ok(Request::RegionWrite { region, offset, data: &data })
        );
        let entries: Vec<_> = entries
            .into_iter()
            .map(|(offset, region, count, data)| vfio::WriteMultiEntry { offset, region, count, data })
            .collect();
        let mut payload = (entries.len() as u64).to_le_bytes().to_vec();
        for entry in &entries {
            payload.extend_from_slice(entry.as_bytes());
        }
        prop_assert_eq!(
            parse(vfio::CMD_REGION_WRITE_MULTI, &payload, 0),
            Ok(Request::RegionWriteMulti(entries))
        );
    }
}
