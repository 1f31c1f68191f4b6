//! Writes what is made from the definition of the options: the manual page and the completions of
//! the shells. `manual DIR` puts them into that directory.

mod coming_from;

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Command, CommandFactory};
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;
use vhost_user_9p::cli::Options;

const EXAMPLES: &str = r#".SH EXAMPLES
Share a directory, as the user who may read it:
.PP
.nf
.RS
vhost\-user\-9p \-\-socket /run/share.sock \-\-shared\-dir /srv/share
.RE
.fi
.PP
Start QEMU 10.2 or newer on it. The guest's memory must be shared, and config_size is the length of the tag and 2:
.PP
.nf
.RS
qemu\-system\-x86_64 \-m 1G ... \e
  \-object memory\-backend\-memfd,id=mem,size=1G,share=on \-numa node,memdev=mem \e
  \-chardev socket,id=share,path=/run/share.sock \e
  \-device vhost\-user\-test\-device\-pci,chardev=share,virtio\-id=9,num_vqs=1,vq_size=128,config_size=6
.RE
.fi
.PP
Cloud Hypervisor, crosvm and User\-mode Linux:
.PP
.nf
.RS
cloud\-hypervisor \-\-memory size=1G,shared=on \-\-generic\-vhost\-user socket=/run/share.sock,device_type=9,queue_sizes=[128] ...
crosvm run \-\-vhost\-user 9p,socket=/run/share.sock,max\-queue\-size=128 ...
linux mem=1G virtio_uml.device=/run/share.sock:9 ...
.RE
.fi
.PP
In the guest:
.PP
.nf
.RS
mount \-t 9p \-o trans=virtio,version=9p2000.L,msize=512000 host /mnt
.RE
.fi
"#;

const REST: &str = r#".SH "EXIT STATUS"
0 after SIGTERM, SIGINT or SIGQUIT, or with
.B \-\-once
when the front\-end has left; 2 for a mistake on the command line; 1 for any other failure. Each failure is told by one line on standard error.
.SH SIGNALS
SIGTERM, SIGINT and SIGQUIT let the requests under way end, remove the socket, and end the daemon. If systemd has started it and keeps descriptors for it
.RB ( FileDescriptorStoreMax= ),
they leave the guest to the daemon that is started next. SIGUSR1 writes one line to the log: whether a front\-end is connected, and how many fids, requests under way, open files and locks the guest has. SIGHUP replaces this program by the one that is installed now, with the same options, and the guest goes on: its files, locks and requests are handed over. The daemon keeps its process number. A program that refuses the options or the state is not taken, and one that then fails to continue gives the guest back to the program before; the log says why. This takes
.BR "\-\-restart crash" ,
the default.
.SH FILES
.TP
.I /usr/share/qemu/vhost\-user/50\-vhost\-user\-9p.json
Tells management software of the daemon.
.TP
.I /etc/vhost\-user\-9p/NAME.conf
SHARED_DIR and OPTIONS of the systemd unit
.BR vhost\-user\-9p@NAME.service ,
which
.BR vhost\-user\-9p\-share (8)
sets up.
.SH "SEE ALSO"
.BR vhost\-user\-9p\-share (8),
.BR qemu (1),
.BR mount (8),
.BR systemd.socket (5)
"#;

/// A section on what the program does instead of serving.
fn write_command(page: &mut impl Write, command: &Command) -> io::Result<()> {
    let roff = |text: String| text.replace('-', r"\-");
    let about = command.get_about().map(ToString::to_string);
    let about = roff(about.unwrap_or_default());
    writeln!(
        page,
        ".SH \"{}\"\n{about}.",
        command.get_name().to_uppercase()
    )?;
    for argument in command.get_arguments() {
        let help = argument.get_help().map(ToString::to_string);
        let name = roff(argument.to_string());
        writeln!(page, ".TP\n.B {name}\n{}", roff(help.unwrap_or_default()))?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let directory = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: manual DIR")?);
    fs::create_dir_all(&directory)?;
    let mut command = Options::command();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut command, "vhost-user-9p", &directory)?;
    }
    let manual = Man::new(command.clone());
    let mut page = File::create(directory.join("vhost-user-9p.1"))?;
    manual.render_title(&mut page)?;
    manual.render_name_section(&mut page)?;
    manual.render_synopsis_section(&mut page)?;
    manual.render_description_section(&mut page)?;
    manual.render_options_section(&mut page)?;
    for other in command.get_subcommands() {
        write_command(&mut page, other)?;
    }
    page.write_all(EXAMPLES.as_bytes())?;
    coming_from::write(&mut page, &command)?;
    page.write_all(REST.as_bytes())?;
    Ok(())
}
