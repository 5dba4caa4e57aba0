<?php
// Routes the topics of Zithara_Webhook to Magento's own database queue. Configuration only.
use Magento\Framework\Component\ComponentRegistrar;

ComponentRegistrar::register(ComponentRegistrar::MODULE, 'Zithara_DatabaseQueue', __DIR__);
