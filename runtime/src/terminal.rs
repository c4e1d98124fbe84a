//! Sizes of terminals (tty_ioctl(4)).

use rustix::termios::{Winsize, tcgetwinsize, tcsetwinsize};
use std::os::fd::BorrowedFd;

/// Rows and columns; `None` when it is no terminal.
pub fn size(terminal: BorrowedFd<'_>) -> Option<(u16, u16)> {
    tcgetwinsize(terminal).ok().map(|size| (size.ws_row, size.ws_col))
}

/// Sets rows and columns.
///
/// # Errors
/// ENOTTY.
pub fn set_size(terminal: BorrowedFd<'_>, rows: u16, columns: u16) -> std::io::Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(terminal, size)?)
}

/// Takes a terminal that is sent through an accepted socket (`SCM_RIGHTS`, unix(7)), as `--console-socket` has it.
///
/// # Errors
/// What recvmsg(2) returns.
pub fn receive(socket: std::os::fd::RawFd) -> std::io::Result<Option<std::os::fd::OwnedFd>> {
    let socket = crate::sys::own(socket);
    Ok(crate::shim::receive_descriptor(&socket)?)
}
