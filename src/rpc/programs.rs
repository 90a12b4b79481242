use std::collections::HashMap;

use super::procedure::{ProcedureId, unknown_procedure, unknown_program};
use crate::wire::RemoteError;

/// What a daemon can be called for: for each procedure a handler, of whatever type its owner calls.
#[derive(Clone, Debug)]
pub struct Programs<H> {
    programs: HashMap<(u32, u32), HashMap<u32, H>>,
}

impl<H> Default for Programs<H> {
    fn default() -> Self {
        Self { programs: HashMap::new() }
    }
}

impl<H> Programs<H> {
    /// No programs yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a program, so that its unknown procedures are told from those of an unknown program.
    pub fn add_program(&mut self, program: u32, version: u32) {
        self.programs.entry((program, version)).or_default();
    }

    /// Registers a procedure, and its program if that is new. Gives the handler that it replaces.
    pub fn add(&mut self, id: ProcedureId, handler: H) -> Option<H> {
        self.programs.entry((id.program, id.version)).or_default().insert(id.procedure, handler)
    }

    /// Who takes a call.
    ///
    /// # Errors
    /// What libvirt answers to a call of a procedure or program that it does not know: code 39.
    pub fn find(&self, id: ProcedureId) -> Result<&H, RemoteError> {
        let program = self.programs.get(&(id.program, id.version)).ok_or_else(|| unknown_program(id))?;
        program.get(&id.procedure).ok_or_else(|| unknown_procedure(id))
    }
}
