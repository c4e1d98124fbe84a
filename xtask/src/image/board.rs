//! Boards that images are built for: what Debian has for them, and how QEMU poses as them.

use coracle_tests::modules::Signatures;

/// Partition table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// Firmware of 32-bit boards reads nothing else.
    Mbr,
    /// All others.
    Gpt,
}

/// How the kernel is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// As files of the boot partition, which the board's own loader reads; QEMU is given them.
    Files,
    /// The same, and QEMU runs that loader from the disk; nobody can add words to the kernel's command line.
    Loader,
    /// By firmware of older PCs (BIOS), which runs the first sector of the disk: SYSLINUX, put into the boot partition;
    /// QEMU runs all of that.
    Bios,
    /// By firmware (UEFI), as one program: systemd's stub in Debian's package, and where firmware looks for programs of
    /// this architecture (UEFI specification, section 3.5.1.1).
    Uefi {
        /// Below `/usr/lib/systemd/boot/efi`.
        stub: &'static str,
        /// On the boot partition.
        program: &'static str,
    },
}

/// A board, or a family that one image fits.
#[derive(Debug)]
pub struct Board {
    /// Its name in balena's device types, where it has one.
    pub slug: &'static str,
    /// Debian's architecture of kernel and programs.
    pub architecture: &'static str,
    /// Debian's kernel for it.
    pub kernel: &'static str,
    /// Rust's name for it.
    pub target: &'static str,
    /// Partition table.
    pub table: Table,
    /// How the kernel is found.
    pub start: Start,
    /// Device trees in the kernel's package, by the beginning of their names; the first is the emulated machine's.
    pub device_trees: &'static [&'static str],
    /// Drivers of what the root may be on, for the initial ramdisk; the root has them too.
    pub early: &'static [&'static str],
    /// Modules of the root: names, and folders that end with a slash.
    pub modules: &'static [&'static str],
    /// Firmware of its radios, loaded by their drivers: Debian's package, and files below `/usr/lib/firmware` (one `*`
    /// in the last part of the path).
    pub firmware: &'static [(&'static str, &'static str)],
    /// What its first code reads from the boot partition: Debian's package, a file of it, and its name there.
    pub loader: &'static [(&'static str, &'static str, &'static str)],
    /// A loader that lies before the first partition: Debian's package, its file, and the place on the disk in bytes.
    pub raw: Option<(&'static str, &'static str, u64)>,
    /// The loader's settings: a file of the boot partition, and its text, with `WORDS` for the command line.
    pub loader_settings: Option<(&'static str, &'static str)>,
    /// What the kernel wants of modules.
    pub signatures: Signatures,
    /// The kernel's command line.
    pub command_line: &'static str,
    /// More of it in QEMU.
    pub emulated: &'static str,
    /// How much longer than others it needs, emulated: its processors take turns on one of this machine's.
    pub patience: u32,
    /// Its watchdog works when it is emulated.
    pub watchdog_works: bool,
    /// The least memory in MiB that its image is tried with, where QEMU lets it be chosen.
    pub least_memory_mib: Option<u32>,
    /// Debian's packages with QEMU and firmware for it.
    pub emulator: &'static [&'static str],
    /// QEMU's program and words for the machine; `SHARE` stands for the packages' `/usr/share`.
    pub machine: &'static [&'static str],
    /// Words for its disk, with `DRIVE` in place of what it is.
    pub disk: &'static [&'static str],
    /// Words for its network.
    pub network: &'static [&'static str],
}

impl Board {
    /// Whether QEMU can add words to the kernel's command line.
    pub fn takes_words(&self) -> bool {
        !matches!(self.start, Start::Loader | Start::Bios)
    }
}

/// What a kernel of 32 bits does at its start in vain, in words for its command line: a self-test of random numbers that
/// nobody uses (0.8 s of an ARM1176 of 1 GHz), certificates for signatures that our modules do not have (0.6 s), and
/// tracing (0.2 s).
macro_rules! quick {
    () => {
        "initcall_blacklist=jent_mod_init,load_system_certificate_list,init_kprobe_trace"
    };
}

/// What containers and their network need, on every board.
pub const COMMON: &[&str] = &[
    "overlay", "veth", "bridge", "br_netfilter", "tun", "dummy", "macvlan", "ipvlan", "nf_tables", "nf_nat",
    "nf_conntrack", "nf_conntrack_netlink", "nft_chain_nat", "nft_ct", "nft_masq", "nft_nat", "nft_redir",
    "nft_reject", "nft_reject_inet", "nft_reject_ipv4", "nft_log", "nft_limit", "nft_fib", "nft_fib_inet",
    "nft_fib_ipv4", "nft_fib_ipv6", "nft_compat", "vfat", "nls_ascii", "nls_cp437", "nls_iso8859_1", "zram",
    "lz4", "loop", "fuse",
];

/// What radios need, in images with a network.
pub const RADIO: &[&str] = &["mac80211", "ccm", "gcm", "cmac", "ctr"];

/// Of these, what the rules and links of any release with a network need: loaded at every boot. Else the kernel asks for
/// each as it is met, which starts a program for each, and the first release waits.
pub const EARLY: &[&str] = &[
    "overlay", "nf_tables", "nft_chain_nat", "nft_ct", "nft_nat", "nft_masq", "nft_fib_inet", "veth", "bridge",
    "br_netfilter", "nf_conntrack_netlink",
];

/// PCs with UEFI, and what those without have in common with them.
const PC: Board = Board {
    slug: "generic-amd64",
    architecture: "amd64",
    kernel: "linux-image-amd64",
    target: "x86_64-unknown-linux-musl",
    table: Table::Gpt,
    start: Start::Uefi { stub: "linuxx64.efi.stub", program: "BOOTX64.EFI" },
    device_trees: &[],
    early: &[
        "squashfs", "ext4", "crc32c_generic", "virtio_pci", "virtio_blk", "mmc_block", "sdhci_pci", "sdhci_acpi",
        "nvme", "ahci", "ata_piix", "sd_mod", "usb_storage", "uas", "xhci_pci", "ehci_pci",
    ],
    modules: &[
        "virtio_net", "virtio_console", "virtio_rng", "e1000", "e1000e", "igb", "igc", "r8169",
        "drivers/net/usb/", "i2c_dev", "i2c_i801", "rtl8xxxu", "ath9k_htc", "iTCO_wdt", "sp5100_tco",
        "qemu_fw_cfg",
    ],
    firmware: &[("firmware-realtek", "rtlwifi/rtl8*u*"), ("firmware-ath9k-htc", "ath9k_htc/htc_*")],
    loader: &[],
    raw: None,
    loader_settings: None,
    signatures: Signatures::Kept,
    command_line: "console=tty0 console=ttyS0,115200 psi=1",
    emulated: "",
    patience: 1,
    watchdog_works: false,
    least_memory_mib: None,
    emulator: &["qemu-system-x86", "ovmf"],
    machine: &["qemu-system-x86_64", "-M", "q35", "-m", "256", "-bios", "SHARE/ovmf/OVMF.fd"],
    disk: &["-drive", "DRIVE,if=none,id=d0", "-device", "virtio-blk-pci,drive=d0"],
    network: &["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile="],
};

/// All.
pub const BOARDS: &[Board] = &[
    Board {
        slug: "raspberry-pi",
        architecture: "armel",
        kernel: "linux-image-rpi",
        target: "arm-unknown-linux-musleabihf",
        table: Table::Mbr,
        start: Start::Files,
        device_trees: &["bcm2835-rpi-a-plus.dtb", "bcm2835-rpi-"],
        early: &["squashfs", "ext4", "crc32c_generic", "sdhci_iproc", "bcm2835", "sdhci_pltfm", "mmc_block"],
        modules: &[
            "drivers/net/usb/", "usb_storage", "raspberrypi_hwmon", "drivers/i2c/busses/", "i2c_dev",
            "drivers/spi/", "bcm2835_wdt", "bcm2835_rng", "drivers/gpio/", "brcmfmac", "drivers/bluetooth/",
            "rtl8xxxu", "rtl8192cu", "ath9k_htc",
        ],
        firmware: &[
            // The radio of the Zero W, and its settings.
            ("firmware-brcm80211", "brcm/brcmfmac43430-sdio.bin"),
            ("firmware-brcm80211", "brcm/brcmfmac43430-sdio.clm_blob"),
            ("firmware-brcm80211", "brcm/brcmfmac43430-sdio.raspberrypi,model-zero-w*"),
            // Sticks for USB.
            ("firmware-realtek", "rtlwifi/rtl8*u*"),
            ("firmware-ath9k-htc", "ath9k_htc/htc_*"),
        ],
        loader: &[
            ("raspi-firmware", "usr/lib/raspi-firmware/bootcode.bin", "bootcode.bin"),
            ("raspi-firmware", "usr/lib/raspi-firmware/start.elf", "start.elf"),
            ("raspi-firmware", "usr/lib/raspi-firmware/fixup.dat", "fixup.dat"),
            ("raspi-firmware", "usr/share/doc/raspi-firmware/copyright", "LICENCE.firmware"),
        ],
        raw: None,
        // Device trees by the kernel's own names (documentation of the firmware, config.txt).
        loader_settings: Some((
            "config.txt",
            "enable_uart=1\nupstream_kernel=1\nkernel=vmlinuz\ninitramfs initrd.img followkernel\n",
        )),
        signatures: Signatures::LeftOut,
        command_line: concat!("console=ttyAMA0,115200 psi=1 cgroup_enable=memory ", quick!()),
        // A register that it lacks; and its watchdog resets at once when it is opened.
        emulated: "initcall_blacklist=bcm2835_power_driver_init coracle.watchdog=0",
        patience: 1,
        watchdog_works: false,
        least_memory_mib: None,
        emulator: &["qemu-system-arm"],
        machine: &["qemu-system-arm", "-M", "raspi1ap"],
        disk: &["-drive", "DRIVE,if=sd"],
        network: &["-netdev", "user,id=n0", "-device", "usb-net,netdev=n0"],
    },
    Board {
        slug: "generic-armv7",
        architecture: "armhf",
        kernel: "linux-image-armmp",
        target: "armv7-unknown-linux-musleabihf",
        table: Table::Gpt,
        start: Start::Files,
        device_trees: &[],
        early: &["squashfs", "ext4", "crc32c_generic", "virtio_mmio", "virtio_blk", "mmc_block", "sunxi_mmc"],
        modules: &[
            "virtio_net", "virtio_console", "virtio_rng", "drivers/net/usb/", "usb_storage", "i2c_dev",
            "sunxi_wdt", "rtl8xxxu", "ath9k_htc",
        ],
        firmware: &[("firmware-realtek", "rtlwifi/rtl8*u*"), ("firmware-ath9k-htc", "ath9k_htc/htc_*")],
        loader: &[],
        raw: None,
        loader_settings: None,
        signatures: Signatures::LeftOut,
        command_line: concat!("console=ttyAMA0,115200 psi=1 gpt ", quick!()),
        emulated: "",
        patience: 1,
        watchdog_works: false,
        least_memory_mib: Some(64),
        emulator: &["qemu-system-arm"],
        machine: &["qemu-system-arm", "-M", "virt", "-cpu", "cortex-a7", "-m", "128"],
        disk: &["-drive", "DRIVE,if=none,id=d0", "-device", "virtio-blk-device,drive=d0"],
        network: &["-netdev", "user,id=n0", "-device", "virtio-net-device,netdev=n0"],
    },
    Board {
        slug: "orange-pi-pc",
        architecture: "armhf",
        kernel: "linux-image-armmp",
        target: "armv7-unknown-linux-musleabihf",
        table: Table::Mbr,
        start: Start::Loader,
        device_trees: &["sun8i-h3-orangepi-pc.dtb"],
        early: &["squashfs", "ext4", "crc32c_generic", "mmc_block", "sunxi_mmc"],
        modules: &[
            "dwmac_sun8i", "sunxi_wdt", "i2c_mv64xxx", "spi_sun6i", "sun8i_thermal", "drivers/net/usb/",
            "usb_storage", "i2c_dev", "rtl8xxxu", "ath9k_htc",
        ],
        firmware: &[("firmware-realtek", "rtlwifi/rtl8*u*"), ("firmware-ath9k-htc", "ath9k_htc/htc_*")],
        loader: &[("u-boot-sunxi", "usr/share/doc/u-boot-sunxi/copyright", "LICENCE.u-boot")],
        // Debian has none for this very board; its sister differs by what is soldered on beside.
        raw: Some(("u-boot-sunxi", "usr/lib/u-boot/orangepi_pc_plus/u-boot-sunxi-with-spl.bin", 8192)),
        loader_settings: Some((
            "extlinux/extlinux.conf",
            "default coracle\nlabel coracle\n\tkernel /vmlinuz\n\tinitrd /initrd.img\n\tfdt /sun8i-h3-orangepi-pc.dtb\n\tappend WORDS\n",
        )),
        signatures: Signatures::LeftOut,
        command_line: concat!("console=ttyS0,115200 psi=1 ", quick!()),
        emulated: "",
        patience: 4,
        watchdog_works: true,
        least_memory_mib: None,
        emulator: &["qemu-system-arm"],
        machine: &["qemu-system-arm", "-M", "orangepi-pc"],
        disk: &["-drive", "DRIVE,if=sd"],
        network: &["-nic", "user"],
    },
    Board {
        slug: "generic-aarch64",
        architecture: "arm64",
        kernel: "linux-image-arm64",
        target: "aarch64-unknown-linux-musl",
        table: Table::Gpt,
        start: Start::Uefi { stub: "linuxaa64.efi.stub", program: "BOOTAA64.EFI" },
        device_trees: &[],
        early: &[
            "squashfs", "ext4", "crc32c_generic", "virtio_mmio", "virtio_pci", "virtio_blk", "mmc_block",
            "sdhci_pci", "sdhci_iproc", "nvme", "ahci", "sd_mod", "usb_storage", "uas", "xhci_pci",
        ],
        modules: &[
            "virtio_net", "virtio_console", "virtio_rng", "e1000e", "igb", "igc", "r8169", "drivers/net/usb/",
            "i2c_dev", "rtl8xxxu", "ath9k_htc", "qemu_fw_cfg",
        ],
        firmware: &[("firmware-realtek", "rtlwifi/rtl8*u*"), ("firmware-ath9k-htc", "ath9k_htc/htc_*")],
        loader: &[],
        raw: None,
        loader_settings: None,
        signatures: Signatures::Kept,
        command_line: "console=ttyAMA0,115200 psi=1",
        emulated: "",
        patience: 1,
        watchdog_works: false,
        least_memory_mib: None,
        emulator: &["qemu-system-arm", "qemu-efi-aarch64"],
        machine: &[
            "qemu-system-aarch64",
            "-M",
            "virt",
            "-cpu",
            "cortex-a53",
            "-m",
            "256",
            "-bios",
            "SHARE/qemu-efi-aarch64/QEMU_EFI.fd",
        ],
        disk: &["-drive", "DRIVE,if=none,id=d0", "-device", "virtio-blk-pci,drive=d0"],
        network: &["-netdev", "user,id=n0", "-device", "virtio-net-pci,netdev=n0,romfile="],
    },
    PC,
    Board {
        slug: "genericx86-64",
        table: Table::Mbr,
        start: Start::Bios,
        loader: &[("syslinux-common", "usr/share/doc/syslinux-common/copyright", "LICENCE.syslinux")],
        // Runs the first sector of the partition that is marked.
        raw: Some(("syslinux-common", "usr/lib/syslinux/mbr/mbr.bin", 0)),
        loader_settings: Some((
            "syslinux.cfg",
            "default coracle\nprompt 0\nlabel coracle\n  linux /vmlinuz\n  initrd /initrd.img\n  append WORDS\n",
        )),
        emulator: &["qemu-system-x86"],
        machine: &["qemu-system-x86_64", "-M", "pc", "-m", "256"],
        disk: &["-drive", "DRIVE,if=ide"],
        network: &["-netdev", "user,id=n0", "-device", "e1000,netdev=n0,romfile="],
        ..PC
    },
];

/// The board of a name.
pub fn find(slug: &str) -> anyhow::Result<&'static Board> {
    let known = BOARDS.iter().map(|board| board.slug).collect::<Vec<_>>().join(", ");
    BOARDS
        .iter()
        .find(|board| board.slug == slug)
        .ok_or_else(|| anyhow::anyhow!("no board {slug:?}; there are {known}"))
}
