//! Pictures in the terminal: the protocols of kitty and iTerm2, and sixel. Which of them a terminal has is known by
//! its name; there is no way to ask all of them that the others would not show as garbage.

mod iterm;
mod kitty;
mod sixel;

use crate::terminal::{TerminalArgs, Window};
use clap::ValueEnum;

/// How pictures are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Preview {
    /// As the terminal can, if it is known to
    Auto,
    /// kitty's graphics protocol
    Kitty,
    /// iTerm2's inline images
    Iterm,
    /// Sixel
    Sixel,
    /// Not at all
    None,
}

/// A way of showing pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// kitty, Ghostty.
    Kitty,
    /// iTerm2, WezTerm, mintty.
    Iterm,
    /// foot, mlterm, contour, Windows Terminal.
    Sixel,
}

impl Preview {
    /// The protocol that is meant, given the terminal's variables.
    pub(crate) fn protocol(self, terminal: &TerminalArgs) -> Option<Protocol> {
        match self {
            Self::Auto => detect(terminal),
            Self::Kitty => Some(Protocol::Kitty),
            Self::Iterm => Some(Protocol::Iterm),
            Self::Sixel => Some(Protocol::Sixel),
            Self::None => None,
        }
    }
}

fn detect(terminal: &TerminalArgs) -> Option<Protocol> {
    let set = |variable: &Option<String>| variable.as_ref().is_some_and(|v| !v.is_empty());
    let term = terminal.term.as_deref().unwrap_or_default();
    // tmux and screen hand none of it on, but hand the outer terminal's variables on.
    if term.starts_with("tmux") || term.starts_with("screen") {
        return None;
    }
    match terminal.term_program.as_deref().unwrap_or_default() {
        "iTerm.app" | "WezTerm" | "mintty" => return Some(Protocol::Iterm),
        "ghostty" => return Some(Protocol::Kitty),
        _ => {}
    }
    if set(&terminal.kitty_window_id) || term.contains("kitty") || term.contains("ghostty") {
        return Some(Protocol::Kitty);
    }
    let sixel = ["foot", "mlterm", "contour"].iter().any(|name| term.starts_with(name));
    (sixel || term.contains("sixel") || set(&terminal.wt_session)).then_some(Protocol::Sixel)
}

/// The bytes that make a terminal show a picture, and go to the next line.
///
/// # Errors
/// Where the picture has to be decoded for it and cannot be.
pub(crate) fn encode(
    protocol: Protocol,
    data: &[u8],
    media_type: &str,
    window: Window,
) -> anyhow::Result<Vec<u8>> {
    match protocol {
        Protocol::Kitty => kitty::encode(data, media_type, window),
        Protocol::Iterm => iterm::encode(data, window),
        Protocol::Sixel => sixel::encode(data, window),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    pub(super) const WINDOW: Window = Window { columns: 80, rows: 24, cell_width: 10, cell_height: 20 };

    pub(super) fn picture(width: u32, height: u32, format: image::ImageFormat) -> Vec<u8> {
        let picture = image::RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 128]));
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn terminal(term: &str, program: &str) -> TerminalArgs {
        TerminalArgs { term: Some(term.into()), term_program: Some(program.into()), ..Default::default() }
    }

    #[test]
    fn terminals_are_known_by_their_names() {
        let cases = [
            ("xterm-kitty", "", Some(Protocol::Kitty)),
            ("xterm-ghostty", "ghostty", Some(Protocol::Kitty)),
            ("xterm-256color", "iTerm.app", Some(Protocol::Iterm)),
            ("xterm-256color", "WezTerm", Some(Protocol::Iterm)),
            ("xterm-256color", "mintty", Some(Protocol::Iterm)),
            ("foot", "", Some(Protocol::Sixel)),
            ("mlterm-256color", "", Some(Protocol::Sixel)),
            ("xterm-sixel", "", Some(Protocol::Sixel)),
            ("xterm-256color", "", None),
            ("xterm-256color", "Apple_Terminal", None),
            ("dumb", "", None),
            ("", "", None),
            ("tmux-256color", "tmux", None),
            ("screen", "iTerm.app", None),
        ];
        for (term, program, protocol) in cases {
            assert_eq!(detect(&terminal(term, program)), protocol, "{term} {program}");
        }
        let kitty = TerminalArgs { kitty_window_id: Some("1".into()), ..terminal("xterm-256color", "") };
        assert_eq!(detect(&kitty), Some(Protocol::Kitty));
        let windows = TerminalArgs { wt_session: Some("x".into()), ..terminal("xterm-256color", "") };
        assert_eq!(detect(&windows), Some(Protocol::Sixel));
        assert_eq!(detect(&TerminalArgs::default()), None);
    }

    #[test]
    fn a_protocol_can_be_forced_or_forbidden() {
        let dumb = terminal("dumb", "");
        assert_eq!(Preview::Sixel.protocol(&dumb), Some(Protocol::Sixel));
        assert_eq!(Preview::None.protocol(&terminal("xterm-kitty", "")), None);
    }
}
