//! BAR0: the trapped registers of a function.
//!
//! Place: the server's REGION_READ and REGION_WRITE end here. Invariants: registers do discovery, start and reset only; an access has the
//! register's own size, or half of an 8-byte one; anything else is refused, nothing is partly done.
//! Source: virtio's device status by name; offsets in `ring_proto::regs`, docs/device.md section "Registers".

use ring_proto::ids::FunctionId;
use ring_proto::regs;
use ring_proto::status::Syndrome;

use super::admin::AdminRings;
use super::function::Function;
use super::limits::Resource;
use super::{Device, DeviceError};

/// What the client wrote, and what the device shows.
#[derive(Debug, Default)]
pub(crate) struct Registers {
    driver_features: u64,
    pub(crate) status: u32,
    pub(crate) reset_generation: u32,
    admin_sq_base: u64,
    admin_cq_base: u64,
    admin_depth: u32,
    pub(crate) syndrome: Syndrome,
}

impl Registers {
    /// Registers after that many resets.
    pub(crate) fn after_resets(reset_generation: u32) -> Self {
        Self {
            reset_generation,
            ..Self::default()
        }
    }
}

/// Status bits a client may set.
const CLIENT_BITS: u32 = regs::STATUS_ACKNOWLEDGE
    | regs::STATUS_DRIVER
    | regs::STATUS_DRIVER_OK
    | regs::STATUS_FEATURES_OK;

impl Device {
    /// Reads a register of BAR0.
    ///
    /// # Errors
    /// [`DeviceError::BadRegister`], [`DeviceError::NoFunction`].
    pub fn read_register(
        &mut self,
        function: FunctionId,
        offset: u64,
        len: u32,
    ) -> Result<u64, DeviceError> {
        let now_ns = self.now_ns();
        let function = self.function(function)?;
        let (register, shift) = locate(offset, len)?;
        let is_port_up = self.nodes.is_port_up(function.node);
        let value = limited(register)
            .map(|resource| self.shown_limit(function.node, resource))
            .or_else(|| function.register(register, now_ns, is_port_up))
            .ok_or(DeviceError::BadRegister { offset, len })?;
        Ok(if len == 4 {
            (value >> shift) & u64::from(u32::MAX)
        } else {
            value
        })
    }

    /// Writes a register of BAR0.
    ///
    /// # Errors
    /// [`DeviceError::BadRegister`], [`DeviceError::NoFunction`].
    pub fn write_register(
        &mut self,
        function: FunctionId,
        offset: u64,
        len: u32,
        value: u64,
    ) -> Result<(), DeviceError> {
        let place = self.place_of(function)?;
        let id = function;
        let function = self.function_mut(function)?;
        let refused = DeviceError::BadRegister { offset, len };
        let (register, shift) = locate(offset, len)?;
        let short = u32::try_from(value);
        if len == 4 && short.is_err() {
            return Err(refused);
        }
        let is_started = function.registers.status & regs::STATUS_DRIVER_OK != 0;
        let merge = |old: u64| {
            if len == 4 {
                old & !(u64::from(u32::MAX) << shift) | value << shift
            } else {
                value
            }
        };
        let registers = &mut function.registers;
        match register {
            regs::DRIVER_FEATURES => registers.driver_features = merge(registers.driver_features),
            regs::ADMIN_SQ_BASE if !is_started => {
                registers.admin_sq_base = merge(registers.admin_sq_base);
            }
            regs::ADMIN_CQ_BASE if !is_started => {
                registers.admin_cq_base = merge(registers.admin_cq_base);
            }
            regs::ADMIN_DEPTH if !is_started => {
                registers.admin_depth = short.map_err(|_| refused)?;
            }
            regs::KICK => self.kicked(id),
            regs::STATUS => {
                let value = short.map_err(|_| refused)?;
                if value == 0 {
                    self.reset(id);
                } else {
                    self.set_status(place, value);
                }
            }
            _ => return Err(refused),
        }
        Ok(())
    }

    /// Adds status bits; DRIVER_OK starts the admin queue.
    fn set_status(&mut self, place: u32, value: u32) {
        let Some(function) = self.functions.at_mut(place) else {
            return;
        };
        let registers = &mut function.registers;
        if registers.status & regs::STATUS_FAILED != 0 {
            return;
        }
        let mut news = value & CLIENT_BITS & !registers.status;
        if registers.driver_features & !regs::FEATURES != 0 {
            news &= !regs::STATUS_FEATURES_OK;
        }
        registers.status |= news;
        if news & regs::STATUS_DRIVER_OK == 0 {
            return;
        }
        let (sq, cq, depth) = (
            registers.admin_sq_base,
            registers.admin_cq_base,
            registers.admin_depth,
        );
        match AdminRings::open(function, sq, cq, depth) {
            Ok(rings) => function.admin = Some(rings),
            Err(_) => self.fail_function(place, Syndrome::WINDOW_GONE),
        }
    }
}

impl Function {
    fn register(&self, offset: u64, now_ns: u64, is_port_up: bool) -> Option<u64> {
        let registers = &self.registers;
        Some(match offset {
            regs::MAGIC => regs::MAGIC_VALUE.into(),
            regs::ABI => regs::ABI_VALUE.into(),
            regs::DEVICE_FEATURES => regs::FEATURES,
            regs::DRIVER_FEATURES => registers.driver_features,
            regs::STATUS => registers.status.into(),
            regs::RESET_GENERATION => registers.reset_generation.into(),
            regs::ADMIN_SQ_BASE => registers.admin_sq_base,
            regs::ADMIN_CQ_BASE => registers.admin_cq_base,
            regs::ADMIN_DEPTH => registers.admin_depth.into(),
            regs::MAX_SLOT => ring_proto::uar::SLOTS.into(),
            regs::MAX_VECTOR => regs::VECTORS.into(),
            regs::MAX_MESSAGE => regs::MESSAGE_LIMIT.into(),
            regs::MAX_DEPTH => regs::DEPTH_LIMIT.into(),
            regs::LINK_STATE => is_port_up.into(),
            regs::NODE => self.node.0.into(),
            regs::ERROR_SYNDROME => registers.syndrome.0.into(),
            regs::CLOCK_NS => now_ns,
            _ => return None,
        })
    }
}

/// What a register tells the limit of.
const fn limited(register: u64) -> Option<Resource> {
    Some(match register {
        regs::MAX_QP => Resource::Qps,
        regs::MAX_CQ => Resource::Cqs,
        regs::MAX_MR => Resource::Mrs,
        regs::MAX_PD => Resource::Pds,
        regs::MAX_MW => Resource::Mws,
        regs::MAX_SRQ => Resource::Srqs,
        _ => return None,
    })
}

/// The register an access belongs to, and the bits to shift for half of one.
fn locate(offset: u64, len: u32) -> Result<(u64, u32), DeviceError> {
    regs::REGISTERS
        .iter()
        .find_map(|&(_, register, register_len)| {
            if offset == register && len == register_len {
                return Some((register, 0));
            }
            if register_len != 8 || len != 4 {
                return None;
            }
            if offset == register {
                Some((register, 0))
            } else if offset == register + 4 {
                Some((register, 32))
            } else {
                None
            }
        })
        .ok_or(DeviceError::BadRegister { offset, len })
}
